"""Google Sheets: one row a snapshot, for those who keep their figures in a spreadsheet.

gspread is an extra of this package (`sheets`) and 35 MiB of memory: it is loaded at the first row, by its lane.
"""

import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, TypeAlias

from cluster_dash_mole.mole import Row, SendError
from cluster_dash_mole.snapshot import Snapshot, clean

if TYPE_CHECKING:
    import gspread

CONNECT_SECONDS, READ_SECONDS = 5.0, 15.0
_LONGEST_WAIT_SECONDS = 3600.0
_QUOTA_SECONDS = 60.0  # Google counts requests by the minute, and often does not say how long to wait

THIS_HOST = "!hostname"

Cell: TypeAlias = str | float

_STRANGER = {
    401: "the service account is not known",
    403: "not allowed: switch the Sheets API on, and share the spreadsheet with the service account as editor",
    404: "no such spreadsheet: check spreadsheets_id",
}


class GoogleSheetsSender:
    """Appends rows to one worksheet, which it makes where there is none.

    Values are sent RAW: a text that looks like a formula stays text, so no name of a host or GPU can run one.
    """

    name = "google_sheets"

    def __init__(self, *, key_file: str, spreadsheet_id: str, worksheet_name: str) -> None:
        self.key_file = key_file
        self._spreadsheet_id = spreadsheet_id
        self._worksheet_name = worksheet_name
        self._worksheet: gspread.Worksheet | None = None

    def send(self, snapshot: Snapshot) -> None:
        """Append the snapshot's row.

        Raises:
            SendError: the row was not taken; `row` says what to do.
        """
        try:
            worksheet = self._worksheet or self._find(snapshot.hostname)
            answer = worksheet.append_row(
                row_of(snapshot),
                value_input_option="RAW",  # type: ignore[arg-type]  # its enum would need the import here
                insert_data_option="INSERT_ROWS",  # type: ignore[arg-type]
                table_range="A1",
            )
            if not (isinstance(answer, dict) and "updates" in answer):
                raise _not_google()
        except SendError:
            raise
        except Exception as error:  # gspread lets through what requests, google-auth and json raise
            failure = judge(error)
            if failure.row not in (Row.TROUBLE, Row.NOT_NOW):
                self._worksheet = None  # the key, the rights or the worksheet may be others next time
            raise failure from error
        self._worksheet = worksheet

    def open(self) -> str:
        """Open the spreadsheet and write nothing; return its title.

        Raises:
            SendError: it cannot be opened.
        """
        try:
            return self._open().title
        except SendError:
            raise
        except Exception as error:  # as in send()
            raise judge(error) from error

    def _find(self, hostname: str) -> "gspread.Worksheet":
        spreadsheet = self._open()
        import gspread

        title = hostname if self._worksheet_name == THIS_HOST else self._worksheet_name
        try:
            return spreadsheet.worksheet(title)
        except gspread.WorksheetNotFound:
            return spreadsheet.add_worksheet(title, rows=1, cols=5)  # both grow with what is appended

    def _open(self) -> "gspread.Spreadsheet":
        try:
            import gspread
        except ModuleNotFoundError as error:
            raise SendError(
                f"{error.name} is not installed: in a checkout `uv sync --extra sheets`, "
                f"elsewhere `{sys.executable} -m pip install gspread`",
                row=Row.WHO_ARE_YOU,
            ) from error
        try:
            client = gspread.service_account(self.key_file, scopes=["https://www.googleapis.com/auth/spreadsheets"])
        except Exception as error:  # it trusts the file's shape: a list in it is an AttributeError
            why = error.strerror if isinstance(error, OSError) else "not the key of a service account, as JSON"
            raise SendError(f"service_account_file_path: {self.key_file}: {why}", row=Row.WHO_ARE_YOU) from error
        client.set_timeout((CONNECT_SECONDS, READ_SECONDS))
        return client.open_by_key(self._spreadsheet_id)


def row_of(snapshot: Snapshot) -> list[Cell]:
    """Return the cells: ISO time, used_gb, total_gb, cpu_percent, load (15 min), gpu_util and memory_util of each GPU.

    GPUs stand in the order of their numbers; where they cannot be read there are none. Unknown is an empty cell.
    """
    parts = {name: part for name, part in snapshot.parts.items() if isinstance(part, Mapping)}
    memory, cpu = parts.get("memory", {}), parts.get("cpu", {})
    loads = cpu.get("load_avgs")
    at = datetime.fromtimestamp(snapshot.timestamp, timezone.utc).astimezone().isoformat(timespec="seconds")
    cells: list[object] = [at, memory.get("used_gb"), memory.get("total_gb"), cpu.get("cpu_percent")]
    cells.append(loads[2] if isinstance(loads, (list, tuple)) and len(loads) == 3 else None)
    for key, gpu in parts.get("gpu", {}).items():
        if key != "gpu_error":
            cells += [gpu.get("gpu_util"), gpu.get("memory_util")]
    return [cell if isinstance(cell, (str, int, float)) else "" for cell in cells]


def judge(error: Exception) -> SendError:
    """Return what an error of gspread, requests or google-auth means by the contract's table of answers."""
    import gspread
    import requests
    from google.auth import exceptions as auth

    cause = error.__cause__  # gspread turns the 403 and 404 of opening into errors without a status
    answer = next((each for each in (error, cause) if isinstance(each, gspread.exceptions.APIError)), None)
    if answer is not None:
        return _judge_answer(answer.response.status_code, answer.response.headers.get("Retry-After", ""), str(answer))
    if isinstance(error, requests.Timeout):
        return SendError(f"no answer from Google within {READ_SECONDS:.0f} s", row=Row.TROUBLE)
    if isinstance(error, auth.TransportError) or (
        isinstance(error, requests.ConnectionError) and not isinstance(error, requests.JSONDecodeError)
    ):
        return SendError(f"no connection to Google: {clean(_innermost(error), 300)}", row=Row.TROUBLE)
    if isinstance(error, auth.GoogleAuthError):
        return SendError(f"Google does not know the service account: {clean(str(error), 300)}", row=Row.WHO_ARE_YOU)
    if isinstance(error, requests.JSONDecodeError):
        return _not_google()
    return SendError(f"{type(error).__name__}: {clean(str(error), 300)}", row=Row.TROUBLE)


def _not_google() -> SendError:
    return SendError("the answer is not Google's (a proxy's login page?)", row=Row.TROUBLE)


def _judge_answer(status: int, retry_after: str, said: str) -> SendError:
    said = clean(said, 300)
    if status in _STRANGER:
        return SendError(f"{_STRANGER[status]} ({status}): {said}", row=Row.WHO_ARE_YOU)
    if status == 400:
        return SendError(f"the row was refused (400): {said}", row=Row.NEVER)
    if status == 429 or (status == 503 and retry_after):
        wait = float(retry_after) if retry_after.isdecimal() else _QUOTA_SECONDS
        wait = min(wait, _LONGEST_WAIT_SECONDS)
        return SendError(
            f"Google asks for a pause ({status}): a longer min_interval_in_secs helps", row=Row.NOT_NOW, wait=wait
        )
    return SendError(f"Google answered {status}: {said}", row=Row.TROUBLE)


def _innermost(error: BaseException) -> str:
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
