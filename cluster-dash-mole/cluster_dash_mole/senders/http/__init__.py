"""HTTP: posts each snapshot to a server, and reads its answer by the contract's table."""

import json
import logging
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from cluster_dash_mole import __version__
from cluster_dash_mole.batches import Source
from cluster_dash_mole.delivery import BatchReceipt, Receipt
from cluster_dash_mole.mole import Clock, Row, SendError
from cluster_dash_mole.senders.http.exchange import Address, Answer, Exchange, parse_address, proxy_of
from cluster_dash_mole.snapshot import Snapshot, clean, encode

if TYPE_CHECKING:
    from ssl import SSLContext

log = logging.getLogger(__name__)

_BATCH_PATH = "api/v1/snapshots"
TOKEN_PREFIX = "cdh_"  # noqa: S105 - how one begins
"""How a token of one host begins; what begins otherwise is a site's passcode, and travels as it always has."""
_LONGEST_WAIT_SECONDS = 3600.0  # a slip of a server's clock must not silence a host for good
_WARN_EVERY_SECONDS = 3600.0

_REFUSED = {
    401: ("CD201", "no passcode or token, or not known here"),
    403: ("CD203", "token revoked, or made for another host"),
    409: ("CD202", "another machine still reports under this name"),
    400: ("CD301", "refused"),
    413: ("CD303", "snapshot too large"),
    422: ("CD301", "refused"),
}
_STRANGER = (401, 403, 409)


class HttpSender:
    """Posts snapshots to one address.

    A server of the first version understands only plain JSON with the secret in the body. One whose answers carry
    `Accept-Encoding: gzip` gets gzip, and the secret as a header where the way is encrypted or stays on this machine.
    """

    name = "http"

    def __init__(
        self,
        *,
        address: str,
        auth_code: str | None,
        clock: Clock,
        environ: Mapping[str, str],
        ca_file: str | None = None,
        allow_plaintext: bool = False,
    ) -> None:
        self._address = parse_address(address)
        self._allow_plaintext = allow_plaintext
        if auth_code is not None and auth_code.startswith(TOKEN_PREFIX):
            self.refuse_in_clear("a token")
        self._proxy = proxy_of(self._address, environ)
        self.url = address
        self.host, self.port = self._address.host, self._address.port
        self.proxy = self._proxy and self._proxy.authority
        self._auth_code = auth_code
        self._clock = clock
        self._tls = _tls_context(ca_file) if self._address.tls else None
        self._gzip = False
        self._warned = float("-inf")

    @property
    def takes_batches(self) -> bool:
        """Whether the server is one of ours, by its last answer."""
        return self._gzip

    def refuse_in_clear(self, what: str) -> None:
        """Refuse to send a secret of this host's own where others can read it.

        Raises:
            ValueError: the address is neither encrypted nor this machine, and the settings do not allow that.
        """
        if not (self._address.tls or self._address.loopback or self._allow_plaintext):
            raise ValueError(
                f"{what} does not travel unencrypted to {self._address.host}: name an https:// address, or set "
                "allow_plaintext = true"
            )

    def send(self, snapshot: Snapshot) -> None:
        """Post the snapshot.

        Raises:
            SendError: the server did not take it; `row` says what to do.
        """
        self.post_one(encode(snapshot.document()), {})

    def post_one(self, body: bytes, more: Mapping[str, object]) -> Receipt:
        """Post a snapshot, given as its JSON object and more members for it.

        Raises:
            SendError: the server did not take it; `row` says what to do.
        """
        said = _object(self._exchange(self._address, [(body, more)], packed=self._gzip))
        durable = said.get("durable_seq")
        return Receipt(
            keeps_history="durable_seq" in said,
            durable_seq=durable if isinstance(durable, int) else None,
            next_seconds=_seconds(said.get("next_seconds")),
        )

    def post_many(self, bodies: Sequence[tuple[bytes, Mapping[str, object]]]) -> BatchReceipt:
        """Post snapshots as one batch, each given as its JSON object and more members for it.

        Raises:
            SendError: the server took none of them; `row` says what to do.
        """
        path = self._address.path
        if not path.endswith(_BATCH_PATH):
            path = f"{path.rstrip('/')}/{_BATCH_PATH}"
        said = _object(self._exchange(self._address._replace(path=path), bodies, packed=self._gzip))
        return BatchReceipt(
            rejected=dict(self._rejected(said)),
            durable=dict(_durable(said)),
            next_seconds=_seconds(said.get("next_seconds")),
        )

    def _exchange(
        self, address: Address, bodies: Sequence[tuple[bytes, Mapping[str, object]]], *, packed: bool
    ) -> Answer:
        self._warn_if_in_clear()
        headers, body = self._request(bodies, packed=packed)
        answer = Exchange(address, proxy=self._proxy, tls=self._tls).post(headers, body)
        self._gzip = "gzip" in answer.headers.get("accept-encoding", "")
        if answer.status in _REFUSED and packed and not self._gzip:
            raise SendError("the server no longer takes gzip: sent plain from now on", row=Row.TROUBLE)
        self.judge(answer)
        return answer

    def post(self, document: Mapping[str, object]) -> Answer:
        """Post any document, plain; return the answer, whatever it says.

        Raises:
            SendError: there is no answer.
        """
        headers, body = self._request([(encode(document), {})], packed=False)
        return Exchange(self._address, proxy=self._proxy, tls=self._tls).post(headers, body)

    def _request(
        self, bodies: Sequence[tuple[bytes, Mapping[str, object]]], *, packed: bool
    ) -> tuple[dict[str, str], bytes]:
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"cluster-dash-mole/{__version__}",
            "Date": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(self._clock.now())),
        }
        secret: dict[str, object] = {}
        if self._auth_code is not None:
            if packed and (self._address.tls or self._address.loopback) and self._auth_code.isascii():
                headers["Authorization"] = f"Bearer {self._auth_code}"
            else:
                secret["auth_code"] = self._auth_code
        body = b"\n".join([_with(document, {**more, **secret}) for document, more in bodies])
        if packed:
            headers["Content-Encoding"] = "gzip"
            # level 2: half the time of the usual one for 10 % more; 31: in gzip's own envelope; 5: small tables
            packer = zlib.compressobj(2, zlib.DEFLATED, 31, 5)
            body = packer.compress(body) + packer.flush()
        return headers, body

    def _rejected(self, said: Mapping[str, object]) -> Iterator[tuple[int, SendError]]:
        """Give the place of each line of a batch that was refused, and why."""
        rejected = said.get("rejected")
        for each in rejected if isinstance(rejected, list) else []:
            match each:
                case {"line": int() as line, "status": int() as status}:
                    code, words = _REFUSED.get(status, ("", "refused"))
                    text = f"{code} {words} ({status}){self._words(each)}".strip()
                    yield line, SendError(text, row=_row(status))

    def judge(self, answer: Answer) -> None:
        """Return where the snapshot was taken.

        Raises:
            SendError: it was not; `row` says what to do.
        """
        status, said = answer.status, self._said(answer)
        if status == 200:
            if not is_json(answer):
                raise SendError(
                    "CD104 got HTML or another text, not cluster-dash (a proxy's login page?)", row=Row.TROUBLE
                )
            if _object(answer).get("success") is not True:
                raise SendError(f"not taken (200){said}", row=Row.TROUBLE)
            return
        if status in _REFUSED:
            code, words = _REFUSED[status]
            raise SendError(f"{code} {words} ({status}){said}", row=_row(status))
        wait = parse_retry_after(answer.headers.get("retry-after"))
        if status in (429, 503) and wait is not None:
            raise SendError(f"server is busy ({status}){said}", row=Row.NOT_NOW, wait=wait)
        if 300 <= status < 400:
            where = clean(answer.headers.get("location", "?"), 200)
            raise SendError(
                f"CD104 redirected to {where} ({status}), not followed: name the final address in address_in",
                row=Row.TROUBLE,
            )
        if status in (404, 405):
            raise SendError(
                f"CD104 nothing takes snapshots at this address ({status}){said}: look at the path of address_in",
                row=Row.TROUBLE,
            )
        raise SendError(f"server answered {status}{said}", row=Row.TROUBLE)

    def _said(self, answer: Answer) -> str:
        """Return the server's own words, as much as is fit for a log: never the secret."""
        return self._words(_object(answer))

    def _words(self, said: Mapping[str, object]) -> str:
        words = said.get("msg")
        if not isinstance(words, str) or not words:
            return ""
        if self._auth_code:
            words = words.replace(self._auth_code, "***")
        return f": {clean(words, 300)}"

    def _warn_if_in_clear(self) -> None:
        now = self._clock.monotonic()
        if self._auth_code is None or self._address.tls or self._address.loopback:
            return
        if now - self._warned >= _WARN_EVERY_SECONDS:
            self._warned = now
            log.warning(
                "the passcode travels unencrypted to %s: an https:// address would protect it", self._address.host
            )


def _tls_context(ca_file: str | None) -> "SSLContext":
    import ssl  # 4 MiB, for those who post by https only

    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:
        raise ValueError(f"ca_file: {ca_file}: holds no certificate in PEM ({error.reason})") from None


def _with(document: bytes, more: Mapping[str, object]) -> bytes:
    """Return a JSON object with more members in it."""
    return document[:-1] + b"," + encode(more)[1:] if more else document


def _row(status: int) -> Row:
    """Return the row of the contract's table for the status of a snapshot that was refused."""
    if status in _STRANGER:
        return Row.WHO_ARE_YOU
    return Row.NEVER if status in _REFUSED else Row.NOT_NOW


def _seconds(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return float(value)
    return None


def _durable(said: Mapping[str, object]) -> Iterator[tuple[Source, int]]:
    durable = said.get("durable")
    for each in durable if isinstance(durable, list) else []:
        match each:
            case {"hostname": str() as hostname, "boot_id": str() as boot_id, "seq": int() as seq}:
                yield Source(hostname, boot_id), seq


def is_json(answer: Answer) -> bool:
    """Return whether the answer is a JSON object, as all of a server's are."""
    return answer.body.lstrip()[:1] == b"{"


def _object(answer: Answer) -> dict[str, object]:
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, at most an hour; None where it has none."""
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return min(seconds, _LONGEST_WAIT_SECONDS) if seconds >= 0 else None
