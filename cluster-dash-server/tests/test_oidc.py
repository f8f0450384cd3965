"""Sign-in at an identity provider: against a stand-in of one on this machine, over real HTTP."""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from flask.testing import FlaskClient

from cluster_dash_server.access.oidc import KEPT_SECONDS
from cluster_dash_server.app import create_app
from cluster_dash_server.settings import ServerSettings, Settings, ViewerSettings

CLIENT, SECRET = "dash", "secret-of-the-client"


class StandIn:
    """An identity provider at which Ann is signed in; `claims` change what it says, `alg` and `key` how it signs."""

    def __init__(self) -> None:
        self.jwk, self.jwt = import_module("joserfc.jwk"), import_module("joserfc.jwt")
        self.key = self.signs_with = self.jwk.RSAKey.generate_key(2048, {"kid": "1", "use": "sig"})
        self.alg = "RS256"
        self.claims: dict[str, Any] = {}
        self.codes: dict[str, dict[str, str]] = {}
        self.now: Callable[[], float] = lambda: 0.0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.issuer = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def get(self, path: str) -> dict[str, Any]:
        if path == "/.well-known/openid-configuration":
            return {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/jwks",
            }
        return {"keys": [self.key.as_dict(private=False)]}

    def token(self, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        asked = self.codes.pop(form.get("code", ""), None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).rstrip(b"=")
        proved = base64.b64decode(authorization.removeprefix("Basic ")) == f"{CLIENT}:{SECRET}".encode()
        if asked is None or not proved or challenge.decode() != asked["code_challenge"]:
            return 400, {"error": "invalid_grant"}
        claims = {
            **{"iss": self.issuer, "aud": CLIENT, "sub": "1", "exp": int(self.now()) + 300, "nonce": asked["nonce"]},
            **{"preferred_username": "ann", **self.claims},
        }
        signed = self.jwt.encode({"alg": self.alg, "kid": "1"}, claims, self.signs_with, algorithms=[self.alg])
        return 200, {"access_token": "x", "token_type": "Bearer", "id_token": signed}

    def sign_in(self, url: str) -> str:
        """Do as a person in a browser: return the query with which they are sent back."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        assert asked["code_challenge_method"] == "S256"
        assert asked["redirect_uri"] == "https://dash.lab/dash/sign-in/return"
        self.codes["the-code"] = asked
        return urlencode({"code": "the-code", "state": asked["state"]})


def _handler(provider: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.say(200, provider.get(self.path))

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            flat = {name: values[0] for name, values in form.items()}
            self.say(*provider.token(flat, self.headers.get("Authorization", "")))

        def say(self, status: int, body: dict[str, Any]) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None: ...

    return Handler


@pytest.fixture(scope="module")
def running() -> Iterator[StandIn]:
    provider = StandIn()
    yield provider
    provider.server.shutdown()
    provider.server.server_close()


@pytest.fixture
def provider(running: StandIn, clock: Any) -> StandIn:
    running.alg, running.signs_with, running.claims, running.now = "RS256", running.key, {}, clock
    return running


@pytest.fixture
def client(provider: StandIn, tmp_path: Path, clock: Any) -> FlaskClient:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    settings = Settings(
        server=ServerSettings(data=str(tmp_path / "data"), public_url="https://dash.lab/dash"),
        viewers=ViewerSettings(
            mode="oidc",
            oidc_issuer=provider.issuer,
            oidc_client_id=CLIENT,
            oidc_client_secret_file=str(tmp_path / "secret"),
            admins=("ann",),
        ),
    )
    return create_app(settings, clock=clock).test_client()


BROWSER: dict[str, Any] = {"headers": {"Host": "dash.lab", "X-Forwarded-Proto": "https", "Accept": "text/html"}}


def begin(client: FlaskClient, goes_to: str = "/dash/gpu-data") -> str:
    answer = client.get(f"/dash/sign-in?go=1&next={goes_to}", **BROWSER)
    assert answer.status_code == 303, answer.text
    return answer.headers["Location"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:authlib")
def test_who_signs_in_at_the_provider_looks_here(client: FlaskClient, provider: StandIn) -> None:
    page = client.get("/dash/gpu-data", **BROWSER)
    assert page.headers["Location"] == "/dash/sign-in?next=/dash/gpu-data"
    back = client.get(f"/dash/sign-in/return?{provider.sign_in(begin(client))}", **BROWSER)
    assert (back.status_code, back.headers["Location"]) == (303, "/dash/gpu-data")
    cookies = back.headers.getlist("Set-Cookie")
    assert any(each.startswith("__Host-cluster_dash=") and "HttpOnly" in each and "Secure" in each for each in cookies)
    assert "ann" in client.get("/dash/", **BROWSER).text


def forged_key(provider: StandIn) -> None:
    provider.signs_with = provider.jwk.RSAKey.generate_key(2048, {"kid": "1"})


def shared_secret(provider: StandIn) -> None:
    """Sign by the public key, as if it were a secret that both know."""
    provider.alg = "HS256"
    provider.signs_with = provider.jwk.OctKey.import_key(provider.key.as_dict(private=False)["n"])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda provider: provider.claims.update(iss="https://evil.example"),
        lambda provider: provider.claims.update(aud="another-client"),
        lambda provider: provider.claims.update(nonce="of-another-sign-in"),
        lambda provider: provider.claims.update(exp=int(provider.now()) - 3600),
        lambda provider: provider.claims.update(preferred_username=None),
        forged_key,
        shared_secret,
    ],
    ids=["issuer", "audience", "nonce", "expired", "no name", "key", "shared secret"],
)
def test_a_word_of_the_provider_that_does_not_hold_lets_nobody_in(
    client: FlaskClient, provider: StandIn, spoil: Callable[[StandIn], None]
) -> None:
    spoil(provider)
    back = client.get(f"/dash/sign-in/return?{provider.sign_in(begin(client))}", **BROWSER)
    assert back.status_code == 403
    assert client.get("/dash/api/v1/cluster", **BROWSER).status_code == 401


def test_a_sign_in_is_for_the_browser_that_began_it_once_and_not_for_ever(
    client: FlaskClient, provider: StandIn, clock: Any
) -> None:
    query = provider.sign_in(begin(client))
    stranger = client.application.test_client()
    assert stranger.get(f"/dash/sign-in/return?{query}", **BROWSER).status_code == 400
    assert client.get(f"/dash/sign-in/return?{query}", **BROWSER).status_code == 303
    assert client.get(f"/dash/sign-in/return?{query}", **BROWSER).status_code == 400
    late = provider.sign_in(begin(client))
    clock.now += KEPT_SECONDS
    assert client.get(f"/dash/sign-in/return?{late}", **BROWSER).status_code == 403


def test_a_provider_that_is_away_is_said_so(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = import_module("requests")

    def away(*_: object, **__: object) -> None:
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "get", away)
    answer = client.get("/dash/sign-in?go=1", **BROWSER)
    assert answer.status_code == 502
    assert "cannot be asked" in answer.text
