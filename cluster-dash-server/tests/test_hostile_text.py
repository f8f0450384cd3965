"""Two hundred hostile texts in every text field of snapshots: none becomes markup, a formula or a command."""

import csv
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import cycle, islice
from typing import Any
from xml.etree import ElementTree

import pytest
from flask.testing import FlaskClient

from cluster_dash_server.app import create_app
from cluster_dash_server.settings import Settings
from cluster_dash_server.web import words

NOW = 1_700_000_000.0
PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</textarea><svg onload=alert(1)>",
    "'><a href=javascript:alert(1)>x</a>",
    '" onmouseover="alert(1)',
    "<!--",
    "]]>",
    "</script><script>alert(1)</script>",
    "<b>bold</b><br><sub>x</sub>",
    '<a href="https://evil.example/">x</a>',
    "$\\href{javascript:alert(1)}{x}$",
    "$$\\alpha$$",
    "&lt;script&gt;",
    "&#60;b&#62;",
    "{{ 7 * 7 }}{% raw %}",
    "${7*7}",
    "\u202egnp.exe",
    "\u2066\u2069\u200e\u200f",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x9b31m",
    "a\r\nSet-Cookie: x=1",
    "\u2028\u2029",
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    'a","b',
    "a;b|c`d`$(e)",
    "../../etc/passwd",
    "%3Cscript%3E%00",
    "\\",
    "\\u003cscript\\u003e",
    "state:free user:x -y",
    '"',
    "'",
    "*",
    "[1-9]",
    "ﷺ" * 8,
    "e\u0301\u0302\u0303" * 20,
    "👩‍💻🏳️‍🌈",
    "A" * 250,
    "__proto__",
    "constructor",
    "null",
    "NaN",
    " ",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
]
WRAPS: list[Callable[[str], str]] = [
    str,
    lambda text: f"x{text}",
    lambda text: f"{text} {text}",
    lambda text: f"\u202b{text}<i>",
]
TEXTS = [wrap(payload)[:250] for wrap in WRAPS for payload in PAYLOADS]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
PAGES = (
    "/",
    "/?group=part",
    "/?group=state&sort=-users",
    "/gpu-data",
    "/cpu-data",
    "/memory",
    "/root_drive",
    "/load-data-1",
    "/tv",
    "/embed/overview",
    "/status",
)


class Shape(HTMLParser):
    """Which elements a page has, with which attributes; and where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[tuple[str, str]] = set()
        self.links: list[str] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements |= {(tag, ""), *((tag, name) for name, _ in attrs)}
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action")]
        self._in_script = tag == "script" and dict(attrs).get("type") == "application/json"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data


def snapshot(place: int, texts: list[str]) -> dict[str, Any]:
    """Make a snapshot with hostile texts in all of its text fields."""
    text = cycle(texts)
    host = re.sub(r"[\x00-\x1f\x7f-\x9f/]", "_", texts[0])[:200] + f" {place}"
    process = {"name": next(text), "command": next(text), "container": next(text), "job_id": next(text)[:128]}
    gpus = {
        f"{index}_{next(text)}"[:200]: {
            "index": index,
            "uuid": f"GPU-{place}-{index}",
            "name": next(text),
            "used_mem": 5000.0 * (index % 2),
            "total_mem": 81559.0,
            "gpu_util": 90.0 * (index % 2),
            "users": {next(text)[:64]: {"1": {**process, "user_from": next(text)}}} if index % 2 else {},
            "error": next(text) if index == 3 else None,
            "throttle_reasons": [next(text)[:64]],
            "compute_mode": next(text)[:32],
        }
        for index in range(4)
    }
    return {
        "auth_code": "lab_cluster_2025",
        "hostname": host,
        "timestamp": NOW,
        "interval_seconds": 60,
        "cpu": {"cpu_percent": 10.0 + place, "load_avgs": [1.0, 1.0, 1.0], "num_cpus": 8},
        "memory": {"total_gb": 100.0, "used_gb": 10.0},
        "disk": {next(text): {"mount_point": next(text), "device": next(text), "total_gb": 10.0, "used_gb": 1.0}},
        "gpu": gpus,
        "general": {
            "os": next(text),
            "kernel": next(text),
            "mole_version": next(text)[:64],
            "driver_version": next(text)[:64],
            "labels": {next(text)[:64]: next(text), "partition": next(text), "rack": next(text)},
        },
        "collectors": {next(text)[:64]: {"ok": False, "error": next(text)}},
        "events": [{"at": NOW - 60, "kind": "xid", "gpu": 1, "code": next(text)[:64], "text": next(text)}],
    }


def start(texts: list[str]) -> FlaskClient:
    client = create_app(Settings(), lambda: NOW).test_client()
    for place in range(len(texts) // 4):
        answer = client.post("/", json=snapshot(place, texts[place * 4 :] + texts[: place * 4]))
        assert answer.status_code == 200, answer.text
    return client


@pytest.fixture(scope="module")
def hostile() -> FlaskClient:
    return start(TEXTS)


def names(client: FlaskClient) -> list[str]:
    hosts: list[str] = (client.get("/api/v1/cluster").json or {})["hosts"]["host"]
    return hosts


def test_there_are_two_hundred_of_them() -> None:
    assert len(set(TEXTS)) >= 200 - 5  # a wrap or two gives the same


def test_no_page_grows_an_element_an_attribute_or_a_link(hostile: FlaskClient) -> None:
    plain = start([f"name{number}" for number in range(len(TEXTS))])
    for number, (odd, calm) in enumerate(zip(islice(names(hostile), 6), islice(names(plain), 6), strict=True)):
        own = [(f"/{way}host/{words.segment(odd)}", f"/{way}host/{words.segment(calm)}") for way in ("", "embed/")]
        user, calm_user = words.segment(TEXTS[number][:64]), words.segment(f"name{number}")
        for path, like in (
            *((page, page) for page in PAGES if number == 0),
            *own,
            (f"/user/{user}", f"/user/{calm_user}"),
        ):
            answer = hostile.get(path)
            assert answer.status_code in (200, 404), path
            shape, wanted = Shape(answer.text), Shape(plain.get(like).text)
            grown = {
                each for each in shape.elements - wanted.elements if each[1].startswith("on") or each[0] in HARMFUL
            }
            assert grown == set(), path
            assert all(link.startswith(("/", "?", "#", "http://localhost/")) for link in shape.links), path
            for script in shape.scripts:
                assert "<" not in script
                json.loads(script)


HARMFUL = ("script", "img", "svg", "i", "br", "sub", "iframe", "object", "base", "meta", "style", "textarea")


def test_no_label_of_a_figure_is_markup_or_a_formula(hostile: FlaskClient) -> None:
    for metric in ("cpu", "memory", "disk", "load"):
        said = json.dumps(hostile.get(f"/api/v1/figures/{metric}").json)
        assert "<" not in said.replace("<br>", "")
        assert "$" not in said


@pytest.mark.parametrize(
    "path", ["/api/gpu-summary?color=no", "/api/v1/free?format=text", "/api/gpu-summary?q=%1b[31m"]
)
def test_no_text_for_a_terminal_holds_a_command_for_it(hostile: FlaskClient, path: str) -> None:
    text = hostile.get(path).text.replace("\x1b[1m", "").replace("\x1b[0m", "")
    if "color=no" not in path and "free" not in path:
        text = re.sub("\x1b\\[9[123]m", "", text)
    assert CONTROL.findall(text) == []


@pytest.mark.parametrize(
    "path",
    [
        "/?format=csv",
        "/gpu-data?format=csv",
        "/root_drive?format=csv",
        "/api/v1/free?format=csv",
        "/api/v1/events?format=csv",
    ],
)
def test_no_cell_of_a_table_is_a_formula_and_each_keeps_its_place(hostile: FlaskClient, path: str) -> None:
    rows = list(csv.reader(io.StringIO(hostile.get(path).text, newline="")))
    if not path.startswith("/api"):
        rows = rows[1:]
    assert len(rows) > 40
    for row in rows:
        assert len(row) == len(rows[0])
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)


def test_the_badge_stays_a_picture_whatever_it_is_asked(hostile: FlaskClient) -> None:
    for text in TEXTS[:50]:
        answer = hostile.get("/badge/free.svg", query_string={"q": text})
        drawn = ElementTree.fromstring(answer.text)  # noqa: S314  our own text
        assert {each.tag.rpartition("}")[2] for each in drawn.iter()} == {"svg", "title", "style", "rect", "g", "text"}


def test_no_filter_becomes_markup(hostile: FlaskClient) -> None:
    plain = Shape(hostile.get("/?q=usr:x%20name").text)
    for text in TEXTS[:50]:
        for path in ("/", "/tv"):
            answer = hostile.get(path, query_string={"q": text})
            assert answer.status_code == 200
            grown = {
                each
                for each in Shape(answer.text).elements - plain.elements
                if each[1].startswith("on") or each[0] in HARMFUL
            }
            assert grown == set(), text
        assert json.loads(hostile.get("/api/v1/facets", query_string={"q": text}).data)
        assert json.loads(hostile.get("/api/v1/cluster", query_string={"q": text}).data)
