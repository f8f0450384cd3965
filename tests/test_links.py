"""Every link of every page of the demo leads somewhere: followed from the overview, as a reader would."""

import sys
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator
from html.parser import HTMLParser
from urllib.parse import parse_qsl, urljoin, urlsplit

import pytest

from tests.processes import TOP, Process, free_port, wait_until

PAGES_OF_A_SHAPE = 2
MOST_KEYS = 2
"""How many choices deep a page is read: each has links to itself with one more, and all together are thousands."""


class Links(HTMLParser):
    """What a page asks for and leads to, and the places on it that a link can name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.add(given.get("id") or "")
        self.targets += [target for key in ("href", "src") if (target := given.get(key))]


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    port = free_port()
    with Process([sys.executable, TOP / "dev" / "demo.py", "--port", str(port)]) as process:
        wait_until(lambda: b"it reboots" in process.output, 60, "all hosts of the demo were told of")
        yield f"http://127.0.0.1:{port}"


def read(url: str) -> tuple[int, Links | None]:
    """Return the status of an answer, and its links where it is a page."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            is_page = answer.headers.get_content_type() == "text/html"
            body = answer.read()
            return answer.status, Links(body.decode()) if is_page else None
    except urllib.error.HTTPError as error:
        return error.code, None


def shape_of(path: str, query: str) -> tuple[str, ...]:
    """Return what pages have in common that differ in a name or a value."""
    parts = path.split("/")
    kind = path if path.startswith("/assets/") else "/".join(parts[:2] + ["*"] * len(parts[2:]))
    return (kind, *sorted({key for key, _ in parse_qsl(query, keep_blank_values=True)}))


def test_every_link_of_every_page_leads_somewhere(demo: str) -> None:
    waiting, met, read_of = deque([("/", "")]), {"/"}, Counter[tuple[str, ...]]()
    ids: dict[str, set[str]] = {}
    places: set[tuple[str, str, str]] = set()
    dead = []
    while waiting:
        target, page = waiting.popleft()
        parts = urlsplit(target)
        shape = shape_of(parts.path, parts.query)
        read_of[shape] += 1
        if read_of[shape] > PAGES_OF_A_SHAPE or len(shape) > 1 + MOST_KEYS:
            continue
        status, links = read(demo + target)
        if status != 200:
            dead.append(f"{status} {target} on {page}")
        if links is None:
            continue
        ids[target] = links.ids
        for link in links.targets:
            to = urlsplit(urljoin(demo + target, link))
            assert f"{to.scheme}://{to.netloc}" == demo, f"{link} on {target} leads out of the site"
            there = to.path + (f"?{to.query}" if to.query else "")
            if to.fragment:
                places.add((there, to.fragment, target))
            if there not in met:
                met.add(there)
                waiting.append((there, target))
    dead += [f"no #{place} in {to} on {page}" for to, place, page in places if to in ids and place not in ids[to]]
    assert dead == []
    assert {shape[0] for shape in read_of} >= {
        "/gpu-data",
        "/history",
        "/waste",
        "/alerts",
        "/status",
        "/slurm",
        "/host/*",
    }
