import html
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from flask.testing import FlaskClient

from cluster_dash_server.app import create_app
from cluster_dash_server.settings import Settings
from cluster_dash_server.web import words

Snapshot = dict[str, Any]
Post = Callable[[Snapshot], None]
PAGES = ("/", "/gpu-data", "/cpu-data", "/memory", "/root_drive", "/load-data-1", "/history")
HOSTILE = "<script>alert(1)</script>\"'&$x$\u202e"


class Page(HTMLParser):
    """What a page holds: its elements by tag, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def client(clock: Callable[[], float]) -> FlaskClient:
    return create_app(Settings(), clock).test_client()


@pytest.fixture
def post(client: FlaskClient) -> Post:
    def send(snapshot: Snapshot) -> None:
        answer = client.post("/", json={**snapshot, "auth_code": "lab_cluster_2025"})
        assert answer.status_code == 200, answer.text

    return send


def get(client: FlaskClient, path: str, status: int = 200) -> Page:
    answer = client.get(path)
    assert answer.status_code == status
    return Page(answer.text)


def row_of(client: FlaskClient, host: str) -> str:
    rows: list[str] = re.findall(r'<tr role="row" data-key.*?</tr>', client.get("/").text, re.DOTALL)
    return next(row for row in rows if f'data-key="{html.escape(host)}"' in row)


def label_of(client: FlaskClient, index: int = 0) -> str:
    return [str(link["aria-label"]) for link in get(client, "/").all("a") if link.get("class") == "gpu"][index]


@pytest.mark.parametrize("path", PAGES)
def test_every_page_answers_without_any_host(client: FlaskClient, path: str) -> None:
    page = get(client, path)
    assert len(page.all("h1")) == 1
    assert page.all("main")[0]["id"] == "main"
    assert {"rel": "icon"}.items() <= page.all("link")[0].items()


@pytest.mark.parametrize("path", PAGES)
def test_no_page_holds_a_script_or_a_handler_inline(
    client: FlaskClient, post: Post, make_snapshot: Any, path: str
) -> None:
    post(make_snapshot())
    page = get(client, path)
    for script in page.all("script"):
        assert script.get("src") or script.get("type") == "application/json"
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_what_is_free_now_is_said_by_model_with_its_hosts_and_a_line_to_copy(
    client: FlaskClient, post: Post, make_snapshot: Any, make_gpu: Any
) -> None:
    assert 'aria-labelledby="free-now-title" hidden' in client.get("/").text
    quote = {"name": "it's a GPU' ; ls #", "total_mem": None}
    for host in ("gpu01", "gpu02", "gpu04"):
        post(make_snapshot(host, [make_gpu(0), make_gpu(1), make_gpu(2, **quote)]))
    page = html.unescape(client.get("/").text)
    assert '<b>H100 80G</b> <span class="count">×6</span> <code class="where">gpu[01-02,04]</code>' in page
    assert "<code>curl -s 'http://localhost/api/v1/free?model=H100%2080G&format=text'</code>" in page
    assert "?model=it%27s%20a%20GPU%27%20%3B%20ls%20%23&format=text'</code>" in page
    assert 'aria-labelledby="free-now-title" hidden' not in page


def test_an_empty_overview_says_which_lines_to_paste(client: FlaskClient) -> None:
    text = get(client, "/").text
    assert 'curl -d "@etc/example_data1.json" -H "Content-Type: application/json" -X POST http://localhost' in text
    assert "uv run python smart_startup.py" in text
    assert "a server with a passcode refuses it" in text
    assert "auth_code its passcode, if it has one" in text


def test_a_cell_is_named_with_all_it_shows(
    client: FlaskClient, post: Post, make_snapshot: Any, make_gpu: Any, clock: Any
) -> None:
    held = make_gpu(4, used_mem=62_000.0, users={"carol": {"7": {"type": "C"}}})
    post(make_snapshot("gpu02", [held], interval_seconds=5))
    assert label_of(client) == "gpu02 GPU 4, busy, carol, 61 of 80 GiB, busy 0 %"
    clock.now += 1801
    post(make_snapshot("gpu02", [held], interval_seconds=5))
    assert label_of(client) == "gpu02 GPU 4, held, carol, 61 of 80 GiB, busy 0 % for 30 min"


def test_figures_that_are_too_old_stand_in_brackets_and_in_no_sum(
    client: FlaskClient, post: Post, make_snapshot: Any, make_gpu: Any, clock: Any
) -> None:
    old = make_gpu(1, gpu_util=90.0, used_mem=40_000.0, read_at=clock.now - 360)
    post(make_snapshot("gpu01", [make_gpu(0, gpu_util=20.0), old], interval_seconds=5, timestamp=clock.now))
    assert label_of(client, 1) == "gpu01 GPU 1, unknown, 39 of 80 GiB, busy 90 %, figures of 6 min ago"
    row = row_of(client, "gpu01")
    for title, text in (("mean of 1 GPU", "20 %"), ("0 of 80 GiB on 1 GPU", "0 %")):
        assert re.search(rf'title="{title}; 1 of 2 reporting">\s*<span class="figure">{text}<', row)
    assert "(90 %)" in client.get("/gpu-data").text


def test_what_is_not_known_is_a_dash_with_its_reason(client: FlaskClient, post: Post, make_snapshot: Any) -> None:
    post(make_snapshot("gpu01", [{"index": 0, "uuid": "abcdef"}], cpu={}))
    assert label_of(client) == "gpu01 GPU 0, unknown, processes not reported, memory not reported, busy % not reported"
    row = row_of(client, "gpu01")
    for reason in (
        "processes of 1 GPU not reported",
        "busy %: not reported",
        "memory: not reported",
        "CPU: not reported",
    ):
        assert re.search(rf'title="{reason}">\s*<span class="figure">–<', row), reason


def test_a_host_without_gpus_says_why(client: FlaskClient, post: Post, make_snapshot: Any) -> None:
    post(make_snapshot("head", [], collectors={"gpu": {"ok": False, "error": "driver not loaded"}}))
    assert "no GPU: driver not loaded" in row_of(client, "head")
    assert "No GPU: driver not loaded" in get(client, "/host/head").text


def test_a_missing_gpu_keeps_its_cell(client: FlaskClient, post: Post, make_snapshot: Any, make_gpu: Any) -> None:
    post(make_snapshot("gpu01", [make_gpu(0), make_gpu(1)]))
    post(make_snapshot("gpu01", [make_gpu(0)]))
    assert label_of(client, 1) == "gpu01 GPU 1, error, 0 of 80 GiB, busy 0 %, missing for 0 s"
    assert "gpu01 GPU 1 missing for 0 s" in get(client, "/").text
    assert "missing for 0 s: the last snapshot does not hold it" in get(client, "/host/gpu01").text


def test_figures_of_a_missing_gpu_stand_in_brackets_and_in_no_sum(
    client: FlaskClient, post: Post, make_snapshot: Any, make_gpu: Any
) -> None:
    both = [make_gpu(0, gpu_util=20.0), make_gpu(1, gpu_util=90.0, used_mem=40_000.0)]
    for host, left in (("gpu01", both[:1]), ("gpu02", [])):
        post(make_snapshot(host, both if left else both[1:]))
        post(make_snapshot(host, left))
    row = row_of(client, "gpu01")
    for title, text in (("mean of 1 GPU", "20 %"), ("0 of 80 GiB on 1 GPU", "0 %")):
        assert re.search(rf'title="{title}; 1 of 2 reporting">\s*<span class="figure">{text}<', row)
    assert re.search(r'title="last known">\s*<span class="figure">\(90 %\)<', row_of(client, "gpu02"))
    assert client.get("/gpu-data").text.count("(90 %)") == 2


def test_a_silent_host_stays_with_its_last_figures_in_brackets(
    client: FlaskClient, post: Post, make_snapshot: Any, clock: Any
) -> None:
    post(make_snapshot("gpu01", interval_seconds=5))
    clock.now += 400
    row = row_of(client, "gpu01")
    assert "data-silent" in row
    assert "(12 %)" in row or "(13 %)" in row
    assert "gpu01 stale 6 min" in get(client, "/").text
    clock.now += 400
    assert "gpu01 down 13 min" in get(client, "/").text
    assert "silent for 13 min" in get(client, "/host/gpu01").text


def test_what_is_wrong_comes_first_then_the_most_free(
    client: FlaskClient, post: Post, make_snapshot: Any, make_gpu: Any
) -> None:
    post(make_snapshot("a-busy", [make_gpu(0, gpu_util=99)]))
    post(make_snapshot("gpu10", [make_gpu(0)]))
    post(make_snapshot("gpu9", [make_gpu(0)]))
    post(make_snapshot("z-free", [make_gpu(0), make_gpu(1)]))
    post(make_snapshot("z-wrong", [make_gpu(0, error="Xid 79")]))
    post(make_snapshot("a-none", []))
    rows = [row["data-key"] for row in get(client, "/").all("tr") if "data-key" in row]
    assert rows == ["z-wrong", "z-free", "gpu9", "gpu10", "a-busy", "a-none"]


def test_many_of_one_kind_are_told_in_one_line(
    client: FlaskClient, post: Post, make_snapshot: Any, make_gpu: Any
) -> None:
    for number in range(5):
        post(make_snapshot(f"gpu{number}", [make_gpu(0, error="Xid 79")]))
    assert "5 GPUs on 5 hosts: Xid 79 (gpu0, gpu1, gpu2 and 2 more)" in get(client, "/").text


def test_gpus_that_fare_alike_need_attention_in_one_line(
    client: FlaskClient, post: Post, make_snapshot: Any, make_gpu: Any
) -> None:
    for host in range(3):
        post(make_snapshot(f"gpu{host}", [make_gpu(index, error="too hot") for index in range(4)]))
    post(make_snapshot("gpu3", [make_gpu(index, error="Xid 48") for index in range(2)]))
    post(make_snapshot("gpu4", [make_gpu(0, error="Xid 79"), make_gpu(1, error="Xid 62")]))
    text = get(client, "/").text
    assert "12 GPUs on 3 hosts: too hot (gpu0, gpu1, gpu2)" in text
    assert "gpu3, 2 GPUs: Xid 48" in text
    assert "gpu4 GPU 0: Xid 79" in text
    assert "1 more GPU in error" in text


def test_a_browser_that_asks_for_the_icon_of_the_site_gets_one(client: FlaskClient) -> None:
    answer = client.get("/favicon.ico")
    assert (answer.status_code, answer.mimetype) == (200, "image/svg+xml")
    assert "<svg" in answer.text


def test_the_title_and_the_icon_carry_the_state(
    client: FlaskClient, post: Post, make_snapshot: Any, make_gpu: Any
) -> None:
    name = Settings().site.name
    assert f"<title>{name}</title>" in client.get("/").text
    post(make_snapshot("gpu01", [make_gpu(0), make_gpu(1, error="Xid 79")]))
    text = client.get("/").text
    assert f"<title>(1!) 1 free – {name}</title>" in text
    assert "icon.svg?says=error" in text


def test_the_legend_says_the_thresholds_in_force(client: FlaskClient, post: Post, make_snapshot: Any) -> None:
    post(make_snapshot())
    titles = [str(item.get("title")) for item in get(client, "/").all("a")]
    assert "held: memory above max(512 MiB, 2 %) and busy below 5 % for 30 min" in titles
    assert "stale: the host has been silent for max(1 min, 3 intervals)" in titles
    assert "down: the host has been silent for max(10 min, 10 intervals)" in titles


@pytest.mark.parametrize("path", [*PAGES, f"/host/{words.segment(HOSTILE)}", f"/host/{words.segment(HOSTILE)}x"])
def test_names_with_markup_are_text_everywhere(
    client: FlaskClient, post: Post, make_snapshot: Any, make_gpu: Any, path: str
) -> None:
    gpus = [
        make_gpu(0, name=HOSTILE, users={HOSTILE: {"1": {"name": HOSTILE, "command": HOSTILE, "job_id": HOSTILE}}}),
        make_gpu(1, error=HOSTILE, throttle_reasons=[HOSTILE]),
    ]
    snapshot = make_snapshot(
        HOSTILE.replace("/", "\u2044"),
        gpus,
        disk={HOSTILE: {"mount_point": HOSTILE, "device": HOSTILE, "used_gb": 1, "total_gb": 2}},
        general={"os": HOSTILE, "kernel": HOSTILE, "labels": {HOSTILE: HOSTILE}},
        collectors={HOSTILE: {"ok": False, "error": HOSTILE}, "gpu": {"error": HOSTILE}},
        events=[{"kind": HOSTILE, "text": HOSTILE, "code": HOSTILE}],
        network={"interfaces": {HOSTILE: {"rx_bytes": 1, "tx_bytes": None}, "odd": 7}},
    )
    post(snapshot)
    path = path.replace("%2F", "%E2%81%84")
    answer = client.get(path)
    assert answer.status_code in (200, 404)
    assert "<script>alert" not in answer.text
    assert not [
        tag for tag, attributes in Page(answer.text).elements if any(name.startswith("on") for name in attributes)
    ]


def test_a_host_page_shows_processes_disks_and_what_collectors_said(
    client: FlaskClient, post: Post, make_snapshot: Any, make_gpu: Any, clock: Any
) -> None:
    process = {"mem": 2048, "time": 7200, "command": "train", "started_at": clock.now - 90, "type": "C", "job_id": 17}
    post(
        make_snapshot(
            "gpu01",
            [
                make_gpu(
                    3, users={"alice": {"4242": process}}, temperature_c=84, temperature_slowdown_c=90, power_w=300.4
                )
            ],
            disk={"/": {"mount_point": "/", "used_gb": 97, "total_gb": 100}},
            collectors={"cpu": {"ok": True, "seconds": 0.002}, "disk": {"ok": False, "error": "mount hangs"}},
            general={"driver_version": "550.54", "boottime": clock.now - 86_400 * 3},
        )
    )
    text = re.sub(r"\s+", " ", get(client, "/host/gpu01").text)
    for said in (
        "alice 4242 train 2.0 GiB 2 h 1 min C 17",
        "84 °C warm",
        "97 of 100 GiB full",
        "failed mount hangs",
        "fine, 2.0 ms",
        "Up for3 d",
        "550.54",
    ):
        assert said.replace(" ", "") in text.replace(" ", ""), said


def test_an_unknown_host_gets_the_nearest_names(client: FlaskClient, post: Post, make_snapshot: Any) -> None:
    post(make_snapshot("gpu01"))
    page = get(client, "/host/gpu1", 404)
    assert "No host of this name has reported" in page.text
    assert "/host/gpu01" in [link["href"] for link in page.all("a")]


def test_links_keep_the_base_path(client: FlaskClient, post: Post, make_snapshot: Any) -> None:
    post(make_snapshot("gpu01"))
    for path in (*PAGES, "/host/gpu01"):
        page = Page(client.get(path, environ_overrides={"SCRIPT_NAME": "/dash"}).text)
        links = [
            each.get("href") or each.get("src") for each in (*page.all("a"), *page.all("link"), *page.all("script"))
        ]
        assert not [link for link in links if link and not link.startswith(("/dash/", "#"))], path
        assert page.all("html")[0]["data-base"] == "/dash/"


def test_style_and_scripts_have_a_new_address_when_they_change(client: FlaskClient) -> None:
    scripts = [str(each["src"]) for each in get(client, "/").all("script")]
    assert scripts
    for path in (*scripts, scripts[-1].replace("overview.js", "format.js")):
        answer = client.get(path)
        assert answer.mimetype == "text/javascript"
        assert "immutable" in answer.headers["Cache-Control"]
    stale = client.get("/assets/000000000000/js/format.js")
    assert (stale.status_code, stale.headers["Cache-Control"]) == (200, "no-cache")
    assert client.get("/assets/000000000000/js/none.js").status_code == 404
    assert client.get("/theme.css").mimetype == "text/css"


def test_the_overview_loads_no_plotly(client: FlaskClient, post: Post, make_snapshot: Any) -> None:
    post(make_snapshot())
    assert "plotly" not in client.get("/").text
    assert "plotly" not in client.get("/host/gpu01").text
    assert "plotly" in client.get("/gpu-data").text


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (words.age(None), "–"),
        (words.age(-3), "0 s"),
        (words.age(59.9), "59 s"),
        (words.age(3599), "59 min"),
        (words.age(100_000), "27 h"),
        (words.age(172_800), "2 d"),
        (words.gib(81_559), "80"),
        (words.gib(512), "0.5"),
        (words.percent(0.5), "1 %"),
        (words.percent(None), "–"),
        (words.used_of(None, 81_559), "– of 80 GiB"),
        (words.used_of(81_559, None), "80 GiB of –"),
        (words.gib_of(29_139, 40_960), "28 of 40 TiB"),
        (words.gib_of(278, 2048), "278 GiB of 2.0 TiB"),
        (words.short(9.96), "10"),
        (words.level(84.9), ""),
        (words.level(95), "full"),
        (words.amount(1536), "1.5 KiB"),
        (words.whole(True), "–"),
    ],
)
def test_numbers_become_words(said: str, expected: str) -> None:
    assert said == expected
