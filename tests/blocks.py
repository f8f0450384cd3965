"""The blocks of code on our pages: what a reader types, and where."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.processes import TOP

PAGES = [
    "setup.md",
    "README.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    *(f"docs/{p.name}" for p in (TOP / "docs").glob("*.md")),
]
FENCED = re.compile(r"(?:^\*(?P<mark>[^*\n]+):\*\n\n?)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)(?:^    \S.*\n)+", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of code of a page; `mark` is the line in italics above it."""

    page: str
    kind: str
    mark: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.text.splitlines()[0][:40]}"

    @property
    def commands(self) -> list[str]:
        """Its commands, each in one line, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in (re.sub(r"(^|\s+)# .*", "", line).strip() for line in lines) if line]


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = (TOP / page).read_text()
        for found in FENCED.finditer(text):
            yield Block(page=page, kind=found["kind"], mark=found["mark"], text=found["text"])
        for found in INDENTED.finditer(FENCED.sub("", text)):
            yield Block(page=page, kind="sh", mark=None, text=re.sub("^    ", "", found[0], flags=re.MULTILINE))


BLOCKS = list(blocks())
SHELL = [block for block in BLOCKS if block.kind == "sh"]
