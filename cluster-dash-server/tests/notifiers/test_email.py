"""Mail to a real mail server on this machine."""

import asyncio
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope

from cluster_dash_server.notices.notice import Notice, NotifyError
from cluster_dash_server.notices.notifiers.email import Email, is_address
from cluster_dash_server.notices.receivers import AlertSettings
from cluster_dash_server.notices.wording import Wording


class Post:
    """Keeps mails; refuses the recipients it is given."""

    def __init__(self) -> None:
        self.mails: list[tuple[list[str], EmailMessage]] = []
        self.refuses: dict[str, str] = {}
        self.data_answer = "250 taken"

    async def handle_RCPT(self, server: Any, session: Any, envelope: Envelope, address: str, options: Any) -> str:
        if address in self.refuses:
            return self.refuses[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:
        if self.data_answer.startswith("250"):
            assert isinstance(envelope.content, bytes)
            read = message_from_bytes(envelope.content, policy=policy.default)
            assert isinstance(read, EmailMessage)
            self.mails.append((list(envelope.rcpt_tos), read))
        return self.data_answer


class FreePort(Controller):
    """Listens on any free port."""

    def _trigger_server(self) -> None:
        assert isinstance(self.server, asyncio.base_events.Server)
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()  # type: ignore[no-untyped-call] # it declares no types


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file with key and certificate of localhost."""
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"),
            *("-keyout", "key.pem", "-out", "cert.pem"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


def context(certificate: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return made


Serve = Callable[..., tuple[Post, AlertSettings]]


@pytest.fixture
def serve(certificate: Path) -> Iterator[Serve]:
    """Start a mail server; returns what it keeps, and the settings that reach it."""
    running: list[FreePort] = []

    def start(security: str = "starttls", **options: Any) -> tuple[Post, AlertSettings]:
        post = Post()
        tls = {"starttls": "tls_context", "tls": "ssl_context"}.get(security)
        if tls is not None:
            options[tls] = context(certificate)
        server = FreePort(post, hostname="localhost", port=0, ready_timeout=60, **options)
        server.start()
        running.append(server)
        return post, AlertSettings(
            mail_server="localhost",
            mail_port=server.port,
            mail_security=security,
            mail_from="dash@lab.example",
            mail_ca_file=None if tls is None else str(certificate / "cert.pem"),
        )

    yield start
    for server in running:
        server.stop()


@pytest.mark.parametrize("security", ["starttls", "tls", "none"])
def test_a_mail_arrives_as_text_and_html(serve: Serve, notice: Notice, wording: Wording, security: str) -> None:
    post, alerts = serve(security)
    Email(("admin@lab.example",), alerts, wording).send(notice)
    ((to, mail),) = post.mails
    assert to == ["admin@lab.example"]
    assert mail["Subject"] == "[lab] critical: gpu03: GPU 2 is lost – völlig"
    assert mail["From"] == "lab <dash@lab.example>"
    assert mail["Auto-Submitted"] == "auto-generated"
    text, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert text is not None
    assert html is not None
    assert "next step: drain the node" in text.get_content()
    assert "<h1" in html.get_content()


def test_the_end_of_an_alert_stands_with_its_beginning_and_a_second_try_is_the_same_mail(
    serve: Serve, notice: Notice, wording: Wording
) -> None:
    post, alerts = serve()
    for each in (notice, notice, replace(notice, key="a:resolved", kind="resolved", ended_at=1_795_000_900.0)):
        Email(("admin@lab.example",), alerts, wording).send(each)
    mails = [mail for _, mail in post.mails]
    assert len({mail["References"] for mail in mails}) == 1
    assert mails[0]["Message-ID"] == mails[1]["Message-ID"] != mails[2]["Message-ID"]


def test_it_signs_in_and_a_wrong_password_is_said_without_it(serve: Serve, notice: Notice, wording: Wording) -> None:
    def knows(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        return AuthResult(success=(data.login, data.password) == (b"dash", b"right one"), handled=False)

    post, alerts = serve(authenticator=knows, auth_required=True)
    Email(("a@lab.example",), replace(alerts, mail_user="dash", mail_password="right one"), wording).send(notice)
    assert len(post.mails) == 1
    wrong = Email(("a@lab.example",), replace(alerts, mail_user="dash", mail_password="wr0ng"), wording)
    with pytest.raises(NotifyError, match="does not let mail_user in: 535") as caught:
        wrong.send(notice)
    assert "wr0ng" not in str(caught.value)
    assert not caught.value.is_final


def test_a_server_without_starttls_gets_no_mail(serve: Serve, notice: Notice, wording: Wording) -> None:
    post, alerts = serve("none")
    with pytest.raises(NotifyError, match="STARTTLS"):
        Email(("a@lab.example",), replace(alerts, mail_security="starttls"), wording).send(notice)
    assert post.mails == []


def test_a_certificate_that_nobody_vouches_for_gets_no_mail(serve: Serve, notice: Notice, wording: Wording) -> None:
    post, alerts = serve()
    with pytest.raises(NotifyError, match="its certificate does not hold"):
        Email(("a@lab.example",), replace(alerts, mail_ca_file=None), wording).send(notice)
    assert post.mails == []


def test_an_address_that_is_refused_for_now_is_tried_alone(serve: Serve, notice: Notice, wording: Wording) -> None:
    post, alerts = serve()
    post.refuses = {"b@lab.example": "450 greylisted"}
    mail = Email(("a@lab.example", "b@lab.example"), alerts, wording)
    with pytest.raises(NotifyError, match=r"b@lab\.example: 450 greylisted") as caught:
        mail.send(notice)
    assert not caught.value.is_final
    post.refuses = {}
    mail.send(notice)
    assert [to for to, _ in post.mails] == [["a@lab.example"], ["b@lab.example"]]


@pytest.mark.parametrize(("answer", "is_final"), [("550 no such user", True), ("451 later", False)])
def test_a_refusal_of_all_says_whether_it_is_for_ever(
    serve: Serve, notice: Notice, wording: Wording, answer: str, is_final: bool
) -> None:
    post, alerts = serve()
    post.refuses = {"a@lab.example": answer}
    with pytest.raises(NotifyError, match=answer) as caught:
        Email(("a@lab.example",), alerts, wording).send(notice)
    assert caught.value.is_final is is_final


def test_a_mail_that_is_not_taken_is_no_mail(serve: Serve, notice: Notice, wording: Wording) -> None:
    post, alerts = serve()
    post.data_answer = "452 full"
    with pytest.raises(NotifyError, match="452 full"):
        Email(("a@lab.example",), alerts, wording).send(notice)


def test_a_server_that_is_not_there_is_said(serve: Serve, notice: Notice, wording: Wording) -> None:
    _, alerts = serve()
    with pytest.raises(NotifyError, match="localhost:1: Connection refused"):
        Email(("a@lab.example",), replace(alerts, mail_port=1), wording).send(notice)


def test_what_is_no_address_is_known() -> None:
    assert is_address("admin@lab.example")
    assert not any(map(is_address, ("admin", "a@b\r\nX: 1", "-oQ/tmp@x", "a b@c", "<a@b>", "", "a@b>")))
