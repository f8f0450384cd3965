"""A notice in words, whatever stands in it."""

from dataclasses import replace
from zoneinfo import ZoneInfo

from cluster_dash_server.notices.notice import Notice
from cluster_dash_server.notices.wording import Wording, lasting

WORDING = Wording(site="lab", zone=ZoneInfo("Europe/Berlin"))
NOTICE = Notice(
    key="a:firing",
    kind="firing",
    alert="a",
    rule="gpu-lost",
    severity="critical",
    title="gpu03: GPU 2 is lost",
    facts=(("where", "gpu03, GPU 2, H100"), ("who", "alice, job 4711"), ("next step", "drain the node")),
    text="",
    link="https://dash.lab/host/gpu03",
    actions=(("I need it for a day more", "https://dash.lab/needed/x"),),
    labels={"host": "gpu03"},
    begun_at=1_795_000_000.0,
    ended_at=None,
)


def test_a_message_says_what_where_who_since_when_and_what_to_do() -> None:
    assert WORDING.subject(NOTICE) == "[lab] critical: gpu03: GPU 2 is lost"
    assert WORDING.text(NOTICE) == (
        "gpu03: GPU 2 is lost\n\n"
        "where:     gpu03, GPU 2, H100\n"
        "who:       alice, job 4711\n"
        "since:     2026-11-18 12:06 CET\n"
        "next step: drain the node\n\n"
        "Read on: https://dash.lab/host/gpu03\n"
        "I need it for a day more: https://dash.lab/needed/x\n"
    )


def test_its_end_says_so_and_how_long_it_lasted() -> None:
    ended = replace(NOTICE, kind="resolved", ended_at=NOTICE.begun_at + 3 * 3600 + 125)
    assert WORDING.subject(ended) == "[lab] ended: gpu03: GPU 2 is lost"
    assert "ended:     2026-11-18 15:08 CET, after 3 h 2 min" in WORDING.text(ended)


def test_texts_of_others_cannot_forge_a_header_a_line_or_markup() -> None:
    hostile = replace(
        NOTICE,
        title='x\r\nBcc: all@lab <script>alert("1")</script>',
        facts=(("who", "<img src=x>\nnext step: call 555"),),
        actions=(("click", "javascript:alert(1)"), ('"><b>', 'https://dash.lab/"><b>')),
        text="<b>bold</b>\n\n\x1b[31mred",
    )
    assert "\n" not in WORDING.subject(hostile)
    assert "\r" not in WORDING.subject(hostile)
    html = WORDING.html(hostile)
    assert "<script" not in html
    assert "<img" not in html
    assert "<b>" not in html
    assert "javascript:" not in html
    assert "\x1b" not in html + WORDING.text(hostile)
    assert "\nnext step: call" not in WORDING.text(hostile)


def test_html_loads_nothing_from_anywhere() -> None:
    html = WORDING.html(NOTICE)
    assert html.count("https://dash.lab/host/gpu03") == 1
    assert " src=" not in html
    assert "url(" not in html


def test_a_stretch_of_time_is_told_by_its_two_largest_units() -> None:
    told = [lasting(seconds) for seconds in (-1, 5, 60, 3660, 90_000, 200_000)]
    assert told == ["0 s", "5 s", "1 min", "1 h 1 min", "1 d 1 h", "2 d 7 h"]
