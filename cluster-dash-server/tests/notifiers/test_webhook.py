"""JSON by POST, signed."""

import base64
import hmac
import json
from collections.abc import Mapping
from typing import Any

import pytest

from cluster_dash_server.notices import guarded
from cluster_dash_server.notices.notice import Notice
from cluster_dash_server.notices.notifiers.webhook import Webhook, signature
from cluster_dash_server.notices.receivers import Receiver
from cluster_dash_server.notices.wording import Wording

Sent = list[tuple[str, bytes, Mapping[str, str]]]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    found: Sent = []

    def keep(url: str, *, body: bytes, headers: Mapping[str, str], **more: Any) -> None:
        found.append((url, body, headers))

    monkeypatch.setattr(guarded, "request", keep)
    return found


def webhook(wording: Wording, **keys: Any) -> Webhook:
    receiver = Receiver(name="hook", kind="webhook", url="https://hooks.lab/x", **keys)
    return Webhook(receiver, wording, clock=lambda: 1_795_000_100.7)


def test_the_body_holds_all_of_the_notice(sent: Sent, notice: Notice, wording: Wording) -> None:
    webhook(wording).send(notice)
    ((url, body, headers),) = sent
    read = json.loads(body)
    assert url == "https://hooks.lab/x"
    assert (read["key"], read["kind"], read["site"], read["rule"]) == ("a:firing", "firing", "lab", "gpu-lost")
    assert read["facts"][0] == {"name": "where", "text": "gpu03, GPU 2"}
    assert read["labels"]["host"] == "gpu03"
    assert read["title"].endswith("völlig")
    assert (read["begun_at"], read["ended_at"]) == (1_795_000_000.0, None)
    assert "webhook-signature" not in headers
    assert "Authorization" not in headers


def test_the_signature_holds_over_key_time_and_body(sent: Sent, notice: Notice, wording: Wording) -> None:
    webhook(wording, secret="of the site", token="t0k").send(notice)
    ((_, body, headers),) = sent
    signed = b"a:firing.1795000100." + body
    expected = base64.b64encode(hmac.digest(b"of the site", signed, "sha256")).decode()
    assert headers["webhook-id"] == "a:firing"
    assert headers["webhook-timestamp"] == "1795000100"
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert headers["Authorization"] == "Bearer t0k"


def test_a_secret_in_the_notation_of_standard_webhooks_is_decoded() -> None:
    # the example of the specification
    signed = b'msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{"test": 2432232314}'
    assert signature("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", signed) == "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signature("whsec_!", b"x") == base64.b64encode(hmac.digest(b"whsec_!", b"x", "sha256")).decode()


def test_a_key_that_no_header_can_hold_is_sent_all_the_same(sent: Sent, notice: Notice, wording: Wording) -> None:
    from dataclasses import replace

    webhook(wording, secret="s").send(replace(notice, key="zürich\r\nX: 1"))
    assert sent[0][2]["webhook-id"] == "z_rich__X:_1"
