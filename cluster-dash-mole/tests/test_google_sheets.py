"""The sender of rows, through gspread and google-auth, against a stand-in for Google's services."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

import pytest

from cluster_dash_mole.mole import Row, SendError
from cluster_dash_mole.senders import GoogleSheetsSender, google_sheets
from cluster_dash_mole.snapshot import Snapshot, gpu_error
from tests.sheets import SPREADSHEET, Fault, Sheets, hangs, hangs_up, refuses, says

PARTS: dict[str, object] = {
    "cpu": {"cpu_percent": 23.4, "load_avgs": [1.0, 2.0, 3.5], "num_cpus": 8},
    "memory": {"used_gb": 10.5, "total_gb": 64.0, "available_gb": 53.0},
    "gpu": {
        "0_H100_aaaaaa": {"index": 0, "gpu_util": 90, "memory_util": 40},
        "1_H100_bbbbbb": {"index": 1, "error": "GPU 1: lost"},
        "2_H100_cccccc": {"index": 2, "gpu_util": 0, "memory_util": None},
    },
}


def snapshot(parts: Mapping[str, object] = PARTS, hostname: str = "gpu01") -> Snapshot:
    return Snapshot(
        hostname=hostname,
        timestamp=1_790_000_000.0,
        interval_seconds=5,
        machine_id=None,
        boot_id="b",
        seq=1,
        parts=parts,
        collectors={},
    )


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sheets]:
    with Sheets("gpu01", "all") as stand_in:
        stand_in.take_the_place_of_google(monkeypatch)
        yield stand_in


@pytest.fixture
def key_file(google: Sheets, tmp_path: Path) -> Path:
    return google.key_file(tmp_path)


def sender(key_file: Path, *, spreadsheet: str = SPREADSHEET, worksheet: str = "!hostname") -> GoogleSheetsSender:
    return GoogleSheetsSender(key_file=str(key_file), spreadsheet_id=spreadsheet, worksheet_name=worksheet)


def failure(subject: GoogleSheetsSender) -> SendError:
    with pytest.raises(SendError) as caught:
        subject.send(snapshot())
    return caught.value


def test_a_snapshot_is_one_row_in_the_order_of_the_first_version(google: Sheets, key_file: Path) -> None:
    sender(key_file).send(snapshot())
    ((at, *figures),) = google.sheets["gpu01"]
    assert datetime.fromisoformat(at).timestamp() == 1_790_000_000
    assert figures == [10.5, 64.0, 23.4, 3.5, 90, 40, "", "", 0, ""]


@pytest.mark.parametrize("parts", [{"gpu": gpu_error("driver not loaded"), "cpu": {}}, {"gpu": {}, "cpu": {}}])
def test_what_is_unknown_is_empty_and_never_0(google: Sheets, key_file: Path, parts: dict[str, object]) -> None:
    sender(key_file).send(snapshot(parts))
    assert google.sheets["gpu01"][0][1:] == ["", "", "", ""]


def test_a_text_that_looks_like_a_formula_stays_text(google: Sheets, key_file: Path) -> None:
    parts = {"cpu": {"cpu_percent": '=IMPORTDATA("http://x")'}, "gpu": {}}
    sender(key_file).send(snapshot(parts))
    assert google.sheets["gpu01"][0][3] == '=IMPORTDATA("http://x")'
    assert google.inputs == ["RAW"]


def test_a_worksheet_may_be_named_or_is_that_of_the_host_and_is_made_if_missing(google: Sheets, key_file: Path) -> None:
    sender(key_file, worksheet="all").send(snapshot())
    sender(key_file).send(snapshot(hostname="gpu02"))
    assert {title: len(rows) for title, rows in google.sheets.items()} == {"gpu01": 0, "all": 1, "gpu02": 1}


def test_opening_the_spreadsheet_writes_nothing(google: Sheets, key_file: Path) -> None:
    assert sender(key_file, worksheet="new").open() == "figures"
    assert google.sheets == {"gpu01": [], "all": []}
    google.fault = refuses(403, "The caller does not have permission")
    with pytest.raises(SendError, match="share the spreadsheet"):
        sender(key_file).open()


def test_a_row_is_one_request_once_the_worksheet_is_known(google: Sheets, key_file: Path) -> None:
    subject = sender(key_file)
    for _ in range(3):
        subject.send(snapshot())
    assert sum(path.endswith(":append") for path in google.requests) == 3
    assert google.requests.count("/token") == 1
    assert len(google.requests) <= 6


def test_a_worksheet_that_somebody_deleted_is_made_again(google: Sheets, key_file: Path) -> None:
    subject = sender(key_file)
    subject.send(snapshot())
    del google.sheets["gpu01"]
    assert failure(subject).row is Row.NEVER
    subject.send(snapshot())
    assert len(google.sheets["gpu01"]) == 1


@pytest.mark.parametrize("opened", [False, True], ids=["at the first row", "later"])
@pytest.mark.parametrize(
    ("fault", "row", "words"),
    [
        (refuses(403, "The caller does not have permission"), Row.WHO_ARE_YOU, "share the spreadsheet"),
        (refuses(404, "Requested entity was not found."), Row.WHO_ARE_YOU, "spreadsheets_id"),
        (refuses(400, "Invalid value"), Row.NEVER, "Invalid value"),
        (refuses(429, "Quota exceeded", Retry_After="17"), Row.NOT_NOW, "min_interval_in_secs"),
        (refuses(503, "try later", Retry_After="17"), Row.NOT_NOW, "503"),
        (refuses(503, "The service is currently unavailable."), Row.TROUBLE, "503"),
        (refuses(500, "Internal error"), Row.TROUBLE, "500: .*Internal error"),
        (says(502, "<html>bad gateway</html>"), Row.TROUBLE, "502"),
        (says(200, "<html>log in</html>"), Row.TROUBLE, "login page"),
        (says(200, "[1]"), Row.TROUBLE, ""),
        (says(200, "{}"), Row.TROUBLE, ""),
        (hangs(1.5), Row.TROUBLE, "no answer from Google"),
        (hangs_up, Row.TROUBLE, "no connection to Google"),
    ],
)
def test_each_fault_is_told_by_its_row_of_the_contract(
    google: Sheets,
    key_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    opened: bool,
    fault: Fault,
    row: Row,
    words: str,
) -> None:
    monkeypatch.setattr(google_sheets, "READ_SECONDS", 0.5)
    subject = sender(key_file)
    if opened:
        subject.send(snapshot())
    google.fault = fault
    error = failure(subject)
    assert (error.row, error.wait) == (row, 17 if row is Row.NOT_NOW else 0)
    assert re.search(words, str(error))
    google.fault = None
    subject.send(snapshot())
    assert len(google.sheets["gpu01"]) == 1 + opened


@pytest.mark.parametrize(
    ("fault", "row", "words"),
    [
        (
            says(400, '{"error": "invalid_grant", "error_description": "Invalid JWT Signature."}'),
            Row.WHO_ARE_YOU,
            "JWT",
        ),
        (hangs_up, Row.TROUBLE, "no connection to Google"),
    ],
)
def test_a_token_that_is_not_given_is_told_by_its_row(
    google: Sheets, key_file: Path, fault: Fault, row: Row, words: str
) -> None:
    google.token_fault = fault
    error = failure(sender(key_file))
    assert error.row is row
    assert re.search(words, str(error))


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"type": "service_account"}', None])
def test_a_key_file_that_is_none_is_named(google: Sheets, tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "key.json"
    if text is not None:
        path.write_text(text)
    error = failure(sender(path))
    assert error.row is Row.WHO_ARE_YOU
    assert f"service_account_file_path: {path}: " in str(error)


def test_without_the_extra_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gspread", None)
    error = failure(sender(tmp_path / "key.json"))
    assert error.row is Row.WHO_ARE_YOU
    assert "gspread is not installed" in str(error)
    assert "uv sync --extra sheets" in str(error)


def test_gspread_is_not_loaded_before_the_first_row() -> None:
    code = (
        "import sys, cluster_dash_mole.cli; print([m for m in ('gspread', 'requests', 'google') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
