"""Time as people write it: Grafana's grammar, Unix seconds, dates."""

from datetime import UTC, datetime, tzinfo
from pathlib import Path
from zoneinfo import TZPATH

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_dash_server import when
from cluster_dash_server.when import NICE_SECONDS, WhenError, moment, span, step_seconds, zone

BERLIN = zone("Europe/Berlin")
NOW = datetime(2026, 3, 11, 15, 30, 20, tzinfo=UTC).timestamp()  # a Wednesday


def read(text: str, *, is_end: bool = False, in_zone: tzinfo = UTC) -> str:
    at = datetime.fromtimestamp(moment(text, NOW, in_zone, is_end=is_end), in_zone)
    return f"{at:%Y-%m-%d %H:%M:%S}"


@pytest.mark.parametrize(
    ("text", "begins", "ends"),
    [
        ("now", "2026-03-11 15:30:20", "2026-03-11 15:30:20"),
        ("now-6h", "2026-03-11 09:30:20", "2026-03-11 09:30:20"),
        ("now+90s", "2026-03-11 15:31:50", "2026-03-11 15:31:50"),
        ("now 90s", "2026-03-11 15:31:50", "2026-03-11 15:31:50"),
        ("now-h", "2026-03-11 14:30:20", "2026-03-11 14:30:20"),
        ("now/d", "2026-03-11 00:00:00", "2026-03-12 00:00:00"),
        ("now-1d/d", "2026-03-10 00:00:00", "2026-03-11 00:00:00"),
        ("now/w", "2026-03-09 00:00:00", "2026-03-16 00:00:00"),
        ("now/M", "2026-03-01 00:00:00", "2026-04-01 00:00:00"),
        ("now-2M/M", "2026-01-01 00:00:00", "2026-02-01 00:00:00"),
        ("now/Q", "2026-01-01 00:00:00", "2026-04-01 00:00:00"),
        ("now-1y", "2025-03-11 15:30:20", "2025-03-11 15:30:20"),
        ("now/h-30m", "2026-03-11 14:30:00", "2026-03-11 15:30:00"),
        ("2026-03-01", "2026-03-01 00:00:00", "2026-03-02 00:00:00"),
        ("2026-03-01T09:14", "2026-03-01 09:14:00", "2026-03-01 09:14:00"),
        ("2026-03-01 09:14", "2026-03-01 09:14:00", "2026-03-01 09:14:00"),
        ("2026-03-01T09:14:03Z", "2026-03-01 09:14:03", "2026-03-01 09:14:03"),
        ("2026-03-01T09:14+02:00", "2026-03-01 07:14:00", "2026-03-01 07:14:00"),
        ("2026-03-01T09:14 02:00", "2026-03-01 07:14:00", "2026-03-01 07:14:00"),
        ("1772356443.5", "2026-03-01 09:14:03", "2026-03-01 09:14:03"),
        ("1772356443000", "2026-03-01 09:14:03", "2026-03-01 09:14:03"),
    ],
)
def test_a_moment_is_read_as_grafana_reads_it(text: str, begins: str, ends: str) -> None:
    assert (read(text), read(text, is_end=True)) == (begins, ends)


def test_days_begin_in_the_zone_of_the_site() -> None:
    assert read("now/d", in_zone=BERLIN) == "2026-03-11 00:00:00"
    assert moment("now/d", NOW, BERLIN) == moment("now/d", NOW) - 3600
    assert moment("2026-03-01", NOW, BERLIN) == moment("2026-02-28T23:00Z", NOW)


def test_a_day_in_which_the_clock_is_set_has_23_or_25_hours() -> None:
    for date, hours in (("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)):
        assert moment(date, NOW, BERLIN, is_end=True) - moment(date, NOW, BERLIN) == hours * 3600
    after = datetime(2026, 3, 29, 12, tzinfo=BERLIN).timestamp()
    assert after - moment("now-1d", after, BERLIN) == 23 * 3600
    assert after - moment("now-24h", after, BERLIN) == 24 * 3600


def test_a_month_is_cut_to_the_days_it_has() -> None:
    end_of_march = datetime(2026, 3, 31, 12, tzinfo=UTC).timestamp()
    assert datetime.fromtimestamp(moment("now-1M", end_of_march), UTC) == datetime(2026, 2, 28, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nan",
        "now-",
        "now-6",
        "now-6x",
        "now/",
        "then",
        "now-1d/d" * 9,
        "-5",
        "2026-13-01",
        "2026-03-01T25:00",
        "now-9999y",
        "now+999999y",
        "99999999999999",
        "1e9",
        "٢٠٢٦",
        "now-٦h",
    ],
)
def test_what_names_no_moment_is_refused_in_words(text: str) -> None:
    with pytest.raises(WhenError, match=r"expected now, now-6h, .* Unix seconds"):
        moment(text, NOW)


@given(st.text(max_size=40) | st.from_regex(r"now([-+/ ][0-9]{0,4}[smhdwMQy]){0,9}", fullmatch=True))
def test_no_text_does_more_than_name_a_moment_or_be_refused(text: str) -> None:
    try:
        at = moment(text, NOW, BERLIN)
    except WhenError:
        return
    assert moment(text, NOW, BERLIN, is_end=True) >= at >= 0


def test_a_span_names_the_end_that_is_wrong() -> None:
    assert span("now-6h", "now", NOW).seconds == 6 * 3600
    assert span("now/d", "now/d", NOW).seconds == 86_400
    assert span("now-6h", "2026-03-12", NOW).is_relative
    assert not span("2026-03-01", "2026-03-02", NOW).is_relative
    for ends, says in ((("x", "now"), "from: got 'x'"), (("now", "y"), "to: got 'y'"), (("now", "now-1s"), "from: is")):
        with pytest.raises(WhenError, match=says):
            span(*ends, NOW)
    with pytest.raises(WhenError, match="from: more than 2 days before to"):
        span("now-3d", "now", NOW, most_seconds=2 * 86_400)


@given(st.floats(min_value=1, max_value=1e10), st.integers(min_value=1, max_value=2000))
def test_a_step_gives_no_more_steps_than_wished(seconds: float, most: int) -> None:
    step = step_seconds(seconds, most)
    assert seconds / step <= most + 1e-6
    assert step in NICE_SECONDS or step % NICE_SECONDS[-1] == 0


def test_a_zone_that_does_not_exist_is_named() -> None:
    for name in ("Mars/Olympus", "../../etc/passwd", ""):
        with pytest.raises(WhenError, match=r"expected a time zone such as Europe/Berlin"):
            zone(name)
    assert datetime.fromtimestamp(0, zone(None)).tzinfo is not None


def test_the_zone_of_this_machine_has_a_name_to_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    berlin = next(path for each in TZPATH if (path := Path(each, "Europe/Berlin")).exists())
    for local, shown in ((tmp_path / "link", "Europe/Berlin"), (tmp_path / "copy", "this machine")):
        if shown == "this machine":
            local.write_bytes(berlin.read_bytes())
        else:
            local.symlink_to(berlin)
        monkeypatch.setattr(when, "LOCAL_ZONE", local)
        assert str(zone(None)) == shown
        assert datetime.fromtimestamp(NOW, zone(None)).utcoffset() == datetime.fromtimestamp(NOW, BERLIN).utcoffset()
