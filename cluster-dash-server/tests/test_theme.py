import re
from itertools import chain
from pathlib import Path
from typing import Literal

import pytest

import cluster_dash_server
from cluster_dash_server.states import STATES
from cluster_dash_server.web.theme import ICONS, icon, stylesheet, theme, variables

PACKAGE = Path(cluster_dash_server.__file__).parent
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def contrast(one: str, other: str) -> float:
    """The contrast of WCAG 2 between two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_text_can_be_read_on_all_it_stands_on(scheme: Literal["light", "dark"]) -> None:
    colours = dict(variables(theme()[scheme]))
    for text in ("--text", "--muted", "--link"):
        for ground in ("--bg", "--surface"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for state in STATES:
        for ground in (f"--{state}-tint", "--bg", "--surface"):
            assert contrast(colours[f"--{state}-text"], colours[ground]) >= 4.5, (state, ground)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_edge_of_every_control_and_cell_stands_out(scheme: Literal["light", "dark"]) -> None:
    colours = dict(variables(theme()[scheme]))
    assert contrast(colours["--link"], colours["--surface"]) >= 3, "focus"
    for state in STATES:
        assert contrast(colours[f"--{state}-ink"], colours["--bg"]) >= (5 if scheme == "light" else 3), state


def test_both_schemes_have_the_same_names() -> None:
    light, dark = (dict(variables(theme()[scheme])) for scheme in SCHEMES)
    assert light.keys() == dark.keys()


def test_the_dark_scheme_holds_by_the_system_and_by_hand() -> None:
    style = stylesheet()
    assert "@media (prefers-color-scheme:dark){:root:not([data-theme=light]){" in style
    assert ":root[data-theme=dark]{" in style
    assert "@media print{:root:root{color-scheme:light;" in style
    assert style.count("--held-ink:") == 4


def test_no_colour_stands_outside_of_the_theme_file() -> None:
    literal = re.compile(
        r"(?<![&\w])#[0-9a-fA-F]{3,8}\b(?!;)|\b(?:rgba?|hsla?|oklch|lab|hwb)\(|"
        r"(?:color|background|border|stroke|fill)[\w-]*\s*[:=]\s*[\"']?"
        r"(?:white|black|red|green|blue|gr[ae]y|orange|yellow|purple)\b"
    )
    files = chain(
        (PACKAGE / "templates").rglob("*.html"),
        (PACKAGE / "static").rglob("*.css"),
        (PACKAGE / "static").rglob("*.js"),
        (PACKAGE / "web").rglob("*.py"),
    )
    found = {
        f"{file.name}: {match[0]}" for file in files for match in literal.finditer(file.read_text(encoding="utf-8"))
    }
    assert found == set()


def test_every_variable_that_a_style_or_a_script_uses_exists() -> None:
    known = set(dict(variables(theme()["light"])))
    style = (PACKAGE / "static" / "style.css").read_text(encoding="utf-8")
    own = set(re.findall(r"(--[\w-]+)\s*:", style)) | {"--share"}
    assert set(re.findall(r"var\((--[\w-]+)", style)) <= known | own


@pytest.mark.parametrize("says", ICONS)
def test_each_icon_is_an_svg_in_a_colour_of_each_scheme(says: str) -> None:
    drawn = icon(says)
    assert drawn.startswith("<svg ")
    assert len(set(re.findall("#[0-9A-F]{6}", drawn))) == 2
