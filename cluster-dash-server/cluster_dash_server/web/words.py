"""Numbers and moments into words, once for all pages: what `static/js/format.js` does in the browser.

A browser test holds the two to each other. Unknown (None, or a field a snapshot does not hold) is always `–`.
"""

import math
from datetime import UTC, datetime
from urllib.parse import quote

DASH = "–"
GLYPHS = {
    "down": "✕",
    "stale": "▧",
    "error": "!",
    "drained": "⊘",
    "held": "◐",
    "busy": "■",
    "unknown": "?",
    "free": "◇",
}
MIB_PER_GIB = 1024
GIB_PER_TIB = 1024
LEVELS = ((95, "full"), (85, "high"))
"""From which percentage on a figure that is bad when full says so, by word; the highest first."""


def known(value: object) -> bool:
    """Say whether a value is a number that can be shown: neither None nor a field that is not there."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole(value: float | None) -> str:
    """Return a number rounded half up, as JavaScript rounds: `61`."""
    return str(math.floor(value + 0.5)) if value is not None and known(value) else DASH


def short(value: float | None) -> str:
    """Return a number with one decimal below 10: `0.4`, `22`, `0`."""
    if value is None or not known(value):
        return DASH
    tenths = math.floor(value * 10 + 0.5)
    return whole(value) if tenths >= 100 or tenths == 0 else f"{tenths / 10:.1f}"


def percent(value: float | None) -> str:
    """Return `61 %`."""
    return f"{whole(value)} %" if known(value) else DASH


def gib(mib: float | None) -> str:
    """Return 2^20 bytes as a number of 2^30 bytes: `61`, without the unit."""
    return short(value=mib / MIB_PER_GIB) if mib is not None and known(mib) else DASH


def used_of(used: float | None, total: float | None) -> str:
    """Return two amounts in 2^20 bytes as `gib_of` does."""
    return gib_of(*(None if each is None or not known(each) else each / MIB_PER_GIB for each in (used, total)))


def gib_of(used: float | None, total: float | None) -> str:
    """Return two amounts in 2^30 bytes as `61 of 80 GiB`, `28 of 40 TiB` or `61 GiB of 2.0 TiB`."""
    part, whole = gib_amount(used), gib_amount(total)
    if whole == DASH:
        return part if part == DASH else f"{part} of {DASH}"
    return f"{part.removesuffix(whole[-len(' GiB') :])} of {whole}"


def gib_amount(value: float | None) -> str:
    """Return an amount in 2^30 bytes in the unit that fits: `61 GiB`, `2.0 TiB`."""
    if value is None or not known(value):
        return DASH
    return f"{short(value)} GiB" if value < GIB_PER_TIB else f"{short(value / GIB_PER_TIB)} TiB"


def share(part: float | None, total: float | None) -> float | None:
    """Return a part in percent of its whole, None where either is unknown or the whole is nothing."""
    if part is None or not total or not known(part) or not known(total):
        return None
    return min(100.0, max(0.0, 100 * part / total))


def level(value: float | None) -> str:
    """Return `full` or `high` for a percentage that is bad when full (CPU, memory of a host, disk), else nothing."""
    return next((word for least, word in LEVELS if value is not None and known(value) and value >= least), "")


def unit(value: float | None, name: str) -> str:
    """Return a number with its unit: `312 W`."""
    return f"{whole(value)} {name}" if known(value) else DASH


def age(seconds: float | None) -> str:
    """Return a stretch of time in its largest fitting unit: `4 s`, `6 min`, `5 h`, `3 d`."""
    if seconds is None or not known(seconds):
        return DASH
    past = max(0, math.floor(seconds))
    for size, word, least in ((86400, "d", 2 * 86400), (3600, "h", 3600), (60, "min", 60)):
        if past >= least:
            return f"{past // size} {word}"
    return f"{past} s"


def amount(value: float | None) -> str:
    """Return a number of bytes in the unit that fits: `3.2 TiB`."""
    if value is None or not known(value):
        return DASH
    for word in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            return f"{short(value)} {word}"
        value /= 1024
    return f"{short(value)} PiB"


def plural(count: int, word: str) -> str:
    """Return `1 host`, `2 hosts`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def cut(text: str, length: int = 160) -> str:
    """Cut a text from a snapshot to so many characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def segment(name: str) -> str:
    """Quote a name for one segment of a path, as `encodeURIComponent` does."""
    return quote(name, safe="-_.!~*'()")


def moment(at: float, now: float) -> str:
    """Return a moment as `09:14 UTC`, with its day where that is another one than that of `now`."""
    then = _datetime(at)
    if then is None:
        return DASH
    day = "" if then.date() == datetime.fromtimestamp(now, UTC).date() else f"{then.day} {then:%b} "
    return f"{day}{then:%H:%M} UTC"


def stamp(at: float) -> str:
    """Return a moment in full: `2026-03-01 09:14:03 UTC`."""
    then = _datetime(at)
    return DASH if then is None else f"{then:%Y-%m-%d %H:%M:%S} UTC"


def _datetime(at: float) -> datetime | None:
    """Return a moment; None where no calendar has it, for a mole may say so."""
    try:
        return datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def utc(at: float) -> str:
    """Return a moment as `12:03:10 UTC`: the server does not know the reader's zone, a script may."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S UTC")


FILTERS = {
    each.__name__: each
    for each in (
        *(whole, short, percent, gib, used_of, gib_of, level, unit, age, amount, plural),
        *(cut, segment, moment, stamp, utc),
    )
}
"""What templates may say of a number or a moment, by name."""
