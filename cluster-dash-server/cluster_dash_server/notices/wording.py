"""A notice in words: one line, text, HTML. Pure. All that comes from outside is escaped or made printable here."""

import html
from dataclasses import dataclass
from datetime import datetime, tzinfo

from cluster_dash_server.notices.notice import Notice
from cluster_dash_server.snapshot import printable

MOST_SUBJECT = 150
"""Characters of a subject; mail programs show some seventy."""
MOST_TEXT = 20_000
ADVICE = ("likely cause", "next step")
"""Facts that stand after what is known."""
_LINKS = ("https://", "http://")
_COLOURS = {"critical": "#b3261e", "warning": "#9a6700", "info": "#0b57a4"}
_ENDED = "#1a7f37"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """How this site words its notices.

    Attributes:
        site: what the pages call the cluster.
        zone: in which moments are told.
    """

    site: str
    zone: tzinfo

    def subject(self, notice: Notice) -> str:
        """Return one line: whose, how grave, what."""
        return printable(f"[{self.site}] {_mark(notice)}{notice.title}", MOST_SUBJECT)

    def facts(self, notice: Notice) -> list[tuple[str, str]]:
        """Return the facts, and when it began and ended where none of them says so."""
        found = [(printable(name, 60), printable(text, 1000)) for name, text in notice.facts]
        named = [name for name, _ in found]
        times = []
        if notice.kind in ("firing", "resolved") and "since" not in named:
            times.append(("since", self.moment(notice.begun_at)))
        if notice.ended_at is not None and "ended" not in named:
            lasted = lasting(notice.ended_at - notice.begun_at)
            times.append(("ended", f"{self.moment(notice.ended_at)}, after {lasted}"))
        place = next((place for place, name in enumerate(named) if name in ADVICE), len(found))
        return [*found[:place], *times, *found[place:]]

    def text(self, notice: Notice) -> str:
        """Return it as text, for terminals, chats and mail programs that show no HTML."""
        facts = self.facts(notice)
        wide = max((len(name) for name, _ in facts), default=0)
        parts = [printable(notice.title, 500)]
        if facts:
            parts.append("\n".join(f"{name + ':':<{wide + 1}} {text}" for name, text in facts))
        parts += _paragraphs(notice)
        links = _links(notice)
        if links:
            parts.append("\n".join(f"{name}: {link}" for name, link in links))
        return "\n\n".join(parts) + "\n"

    def html(self, notice: Notice) -> str:
        """Return it as HTML that loads nothing from anywhere."""
        colour = _ENDED if notice.kind == "resolved" else _COLOURS[notice.severity]
        rows = "".join(
            f'<tr><td style="padding:2px 16px 2px 0;vertical-align:top;opacity:.75">{_safe(name)}</td>'
            f'<td style="padding:2px 0;vertical-align:top">{_safe(text)}</td></tr>'
            for name, text in self.facts(notice)
        )
        paragraphs = "".join(f'<p style="white-space:pre-wrap">{_safe(each)}</p>' for each in _paragraphs(notice))
        links = "".join(f'<p><a href="{_safe(link)}">{_safe(name)}</a></p>' for name, link in _links(notice))
        return (
            '<!doctype html><html><head><meta charset="utf-8"><meta name="color-scheme" content="light dark"></head>'
            '<body style="font:15px/1.45 system-ui,sans-serif">'
            f"{_badge(_mark(notice).rstrip(': '), colour)}"
            f'<h1 style="font-size:19px;margin:0 0 12px">{_safe(printable(notice.title, 500))}</h1>'
            + (f'<table style="border-collapse:collapse">{rows}</table>' if rows else "")
            + f"{paragraphs}{links}"
            f'<p style="opacity:.75">{_safe(printable(self.site, 100))}</p></body></html>\n'
        )

    def moment(self, at: float) -> str:
        """Word a moment (Unix s) in the zone of the site."""
        return datetime.fromtimestamp(at, self.zone).strftime("%Y-%m-%d %H:%M %Z")


def lasting(seconds: float) -> str:
    """Word a stretch of time by its two largest units."""
    minutes = int(max(seconds, 0)) // 60
    if minutes < 1:
        return f"{int(max(seconds, 0))} s"
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    told = [f"{days} d"] * (days > 0) + [f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (minutes > 0)
    return " ".join(told[:2])


def _mark(notice: Notice) -> str:
    if notice.kind == "resolved":
        return "ended: "
    return f"{notice.severity}: " if notice.kind == "firing" else "test: " if notice.kind == "test" else ""


def _badge(text: str, colour: str) -> str:
    """Word how grave it is, in colours that can be read on light and dark."""
    if not text:
        return ""
    style = f"display:inline-block;background:{colour};color:#fff;font-weight:600;padding:0 8px;border-radius:4px"
    return f'<p style="margin:0 0 4px"><span style="{style}">{_safe(text)}</span></p>'


def _paragraphs(notice: Notice) -> list[str]:
    lines = [printable(line, 1000) for line in notice.text[:MOST_TEXT].splitlines()]
    return [each for each in "\n".join(lines).split("\n\n") if each.strip()]


def _links(notice: Notice) -> list[tuple[str, str]]:
    own = [] if notice.link is None else [("Read on", notice.link)]
    return [(printable(name, 200), link) for name, link in (*own, *notice.actions) if link.startswith(_LINKS)]


def _safe(text: str) -> str:
    return html.escape(text, quote=True)
