"""The one theme file made into what a browser reads: CSS variables and the icon of a page."""

import json
from collections.abc import Iterator
from importlib import resources
from typing import Literal

Scheme = Literal["light", "dark"]
Colours = dict[str, str | dict[str, str] | list[str]]


def theme() -> dict[Scheme, Colours]:
    """Return `static/theme.json`: colours by scheme and name; every colour of the project stands there."""
    text = resources.files("cluster_dash_server").joinpath("static", "theme.json").read_text("utf-8")
    colours: dict[Scheme, Colours] = json.loads(text)
    return colours


def variables(colours: Colours) -> Iterator[tuple[str, str]]:
    """Yield the CSS variables of one scheme: `--bg`, `--held-ink`, `--busy-ramp-0` and so on."""
    for name, colour in colours.items():
        if isinstance(colour, str):
            yield f"--{name}", colour
        elif isinstance(colour, dict):
            yield from ((f"--{name}-{part}", value) for part, value in colour.items())
        else:
            yield from ((f"--{name}-{step}", value) for step, value in enumerate(colour))


def stylesheet() -> str:
    """Return the CSS that sets the variables: by the system's wish, else by `data-theme`; paper is always light."""
    light, dark = (_declarations(scheme) for scheme in ("light", "dark"))
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}\n"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}\n"
        f"@media print{{:root:root{{color-scheme:light;{light}}}}}\n"
    )


def _declarations(scheme: Scheme) -> str:
    return "".join(f"{name}:{value};" for name, value in variables(theme()[scheme]))


_SHAPES = {
    "free": '<path d="M16 3 29 16 16 29 3 16Z" fill="none" stroke-width="4"/>',
    "busy": '<path d="M5 5H27V27H5Z" class="full"/>',
    "error": '<path d="M16 3 30 28H2Z" fill="none" stroke-width="3" stroke-linejoin="round"/>'
    '<path d="M16 11V20M16 23V26" stroke-width="3.5"/>',
    "none": '<path d="M4 16H28" stroke-width="5"/>',
}
ICONS = tuple(_SHAPES)
"""What the icon of a page can say by its shape: something is free, all is busy, something is wrong, no GPU."""


def inks() -> tuple[dict[str, str], dict[str, str]]:
    """Return the colours of the light and of the dark scheme, by name: `free-ink`."""
    both = theme()
    light, dark = ({name.removeprefix("--"): value for name, value in variables(both[scheme])} for scheme in both)
    return light, dark


def icon(says: str) -> str:
    """Return the icon as SVG, in the colour of what it says, for both schemes."""
    both = theme()
    inks = {scheme: dict(variables(both[scheme])) for scheme in both}
    name = {"none": "--muted"}.get(says, f"--{says}-ink")
    rule = "path{{stroke:{0}}}.full{{fill:{0}}}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><style>'
        + rule.format(inks["light"][name])
        + "@media (prefers-color-scheme:dark){"
        + rule.format(inks["dark"][name])
        + "}</style>"
        + _SHAPES[says]
        + "</svg>"
    )
