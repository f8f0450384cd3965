"""A stand-in for Google's token and Sheets services: as much of their HTTP as the mole's sender uses, on loopback.

A service account's key file names the token service, so that the whole way is real but for the names of the hosts.
"""

import functools
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

SPREADSHEET = "1aBcD"
Fault = Callable[[BaseHTTPRequestHandler], None]


class Sheets:
    """One spreadsheet: `sheets` is {title of a worksheet: rows}; `fault` answers in place of the API while it is set.

    `requests` are the paths asked for; `inputs` how the values of each row wanted to be read.
    """

    def __init__(self, *titles: str) -> None:
        self.sheets: dict[str, list[list[Any]]] = {title: [] for title in titles}
        self.fault: Fault | None = None
        self.token_fault: Fault | None = None
        self.requests: list[str] = []
        self.inputs: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def key_file(self, folder: Path) -> Path:
        """Write the key of a service account that the stand-in knows."""
        path = folder / "service-account.json"
        path.write_text(
            json.dumps(
                {
                    "type": "service_account",
                    "client_email": "mole@example.iam.gserviceaccount.com",
                    "private_key_id": "1",
                    "private_key": _private_key(),
                    "token_uri": f"{self.url}/token",
                }
            )
        )
        return path

    def take_the_place_of_google(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Point gspread here: it has its addresses as constants."""
        base = f"{self.url}/v4/spreadsheets/%s"
        monkeypatch.setattr("gspread.http_client.SPREADSHEET_URL", base)
        monkeypatch.setattr("gspread.http_client.SPREADSHEET_BATCH_UPDATE_URL", f"{base}:batchUpdate")
        monkeypatch.setattr("gspread.http_client.SPREADSHEET_VALUES_APPEND_URL", f"{base}/values/%s:append")


@functools.cache
def _private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem.decode()


def says(status: int, text: str, **headers: str) -> Fault:
    """Return a fault that answers so."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        _answer(request, status, text.encode(), {name.replace("_", "-"): value for name, value in headers.items()})

    return answer


def refuses(status: int, message: str, **headers: str) -> Fault:
    """Return a fault in the shape of Google's errors."""
    return says(status, json.dumps({"error": {"code": status, "message": message, "status": "WORD"}}), **headers)


def hangs(seconds: float) -> Fault:
    """Return a fault that says nothing for so long."""
    return lambda _: time.sleep(seconds)


def hangs_up(request: BaseHTTPRequestHandler) -> None:
    """Close the connection without an answer."""
    request.close_connection = True


def _answer(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    request.send_response(status)
    for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def _handler(google: Sheets) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            where = urlsplit(self.path)
            google.requests.append(unquote(where.path))
            if where.path == "/token":
                if google.token_fault:
                    return google.token_fault(self)
                return self._give({"access_token": "t0ken", "expires_in": 3600, "token_type": "Bearer"})
            if google.fault:
                return google.fault(self)
            if self.headers.get("Authorization") != "Bearer t0ken":
                return refuses(401, "no valid credentials")(self)
            return self._sheet(unquote(where.path), parse_qs(where.query), json.loads(body or b"{}"))

        def _sheet(self, path: str, query: dict[str, list[str]], document: dict[str, Any]) -> None:
            name = path.removeprefix("/v4/spreadsheets/")
            if not name.startswith(SPREADSHEET):
                return refuses(404, "Requested entity was not found.")(self)
            if name.endswith(":batchUpdate"):
                title = document["requests"][0]["addSheet"]["properties"]["title"]
                google.sheets[title] = []
                return self._give({"replies": [{"addSheet": {"properties": _properties(title)}}]})
            if name.endswith(":append"):
                title = name.removeprefix(f"{SPREADSHEET}/values/").rpartition("!")[0].strip("'")
                if title not in google.sheets:
                    return refuses(400, f"Unable to parse range: {title}")(self)
                google.inputs += query["valueInputOption"]
                google.sheets[title] += document["values"]
                return self._give({"updates": {"updatedRows": 1}})
            sheets = [{"properties": _properties(title)} for title in google.sheets]
            return self._give({"spreadsheetId": SPREADSHEET, "properties": {"title": "figures"}, "sheets": sheets})

        def _give(self, document: dict[str, Any]) -> None:
            _answer(self, 200, json.dumps(document).encode())

    return Handler


def _properties(title: str) -> dict[str, Any]:
    return {"sheetId": 7, "title": title, "index": 0, "gridProperties": {"rowCount": 1, "columnCount": 5}}
