"""Mail, by the site's own mail server."""

import re
import smtplib
import socket
import ssl
import threading
from collections import OrderedDict
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import formatdate
from hashlib import sha256

from cluster_dash_server.notices.notice import Notice, NotifyError
from cluster_dash_server.notices.receivers import AlertSettings, Receiver
from cluster_dash_server.notices.wording import Wording
from cluster_dash_server.snapshot import printable

SECONDS = 20.0
"""How long the mail server may take for each of its answers."""
AT_ONCE = threading.BoundedSemaphore(4)
"""Connections to the mail server: it limits them, and each receiver is told by a thread of its own."""
MOST_REMEMBERED = 1000
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,253}", re.ASCII)


def build(receiver: Receiver, alerts: AlertSettings, wording: Wording) -> "Email":
    """Make it of its settings."""
    return Email(receiver.to, alerts, wording)


def is_address(text: str) -> bool:
    """Say whether a text can be the address of somebody."""
    return _ADDRESS.fullmatch(text) is not None and not text.startswith("-")


class Email:
    """Mails to some addresses, each of which gets a notice once, also where the server first refused others.

    Args:
        to: the addresses.
        alerts: how to reach the mail server.
        wording: how notices are worded.
    """

    def __init__(self, to: tuple[str, ...], alerts: AlertSettings, wording: Wording) -> None:
        self._to = to
        self._alerts = alerts
        self._wording = wording
        self._have_it: OrderedDict[str, set[str]] = OrderedDict()

    def send(self, notice: Notice) -> None:
        """Hand a notice to the mail server.

        Raises:
            NotifyError: it did not take it for one of the addresses.
        """
        have_it = self._have_it.get(notice.key, set())
        left = [address for address in self._to if address not in have_it]
        refused = self._hand_over(self._message(notice), left)
        if not refused:
            self._have_it.pop(notice.key, None)
            return
        self._have_it[notice.key] = have_it | (set(left) - set(refused))
        while len(self._have_it) > MOST_REMEMBERED:
            self._have_it.popitem(last=False)
        raise _refusal(refused)

    def _hand_over(self, message: EmailMessage, to: list[str]) -> dict[str, tuple[int, bytes]]:
        """Return the addresses that were refused, and the server's word on each."""
        where = f"{self._alerts.mail_server}:{self._alerts.mail_port}"
        try:
            with AT_ONCE, self._connected() as server:
                try:
                    return server.send_message(message, self._alerts.mail_from, to)
                except smtplib.SMTPRecipientsRefused as error:
                    return error.recipients
        except smtplib.SMTPNotSupportedError as error:
            raise NotifyError(f"{where}: {error}") from None
        except smtplib.SMTPAuthenticationError as error:
            raise NotifyError(
                f"{where}: does not let mail_user in: {_said(error.smtp_code, error.smtp_error)}"
            ) from None
        except smtplib.SMTPDataError as error:
            is_final = 550 <= error.smtp_code < 560
            raise NotifyError(f"{where}: {_said(error.smtp_code, error.smtp_error)}", is_final=is_final) from None
        except smtplib.SMTPResponseException as error:
            raise NotifyError(f"{where}: {_said(error.smtp_code, error.smtp_error)}") from None
        except ssl.SSLCertVerificationError as error:
            raise NotifyError(f"{where}: its certificate does not hold: {error.verify_message}") from None
        except TimeoutError:
            raise NotifyError(f"{where}: does not answer in time") from None
        except (OSError, smtplib.SMTPException) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else printable(str(error), 200)
            raise NotifyError(f"{where}: {why}") from None

    def _connected(self) -> smtplib.SMTP:
        alerts = self._alerts
        context = ssl.create_default_context(cafile=alerts.mail_ca_file)
        host, port = alerts.mail_server or "", alerts.mail_port
        if alerts.mail_security == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(host, port, timeout=SECONDS, context=context)
        else:
            server = smtplib.SMTP(host, port, timeout=SECONDS)
        try:
            if alerts.mail_security == "starttls":
                server.starttls(context=context)
            if alerts.mail_user is not None:
                server.login(alerts.mail_user, alerts.mail_password or "")
        except BaseException:  # raised again: the connection is nobody's yet
            server.close()
            raise
        return server

    def _message(self, notice: Notice) -> EmailMessage:
        message = EmailMessage()
        message["Subject"] = self._wording.subject(notice)
        message["From"] = Address(printable(self._wording.site, 60), addr_spec=self._alerts.mail_from)
        message["To"] = ", ".join(self._to)
        message["Date"] = formatdate(localtime=False)
        domain = (self._alerts.mail_from or "").partition("@")[2] or socket.gethostname()
        message["Message-ID"] = f"<{_digest(notice.key)}@{domain}>"
        if notice.alert is not None:
            # what begins and what ends it stand together in the reader's mail program
            message["References"] = f"<{_digest(notice.alert)}@{domain}>"
        message["Auto-Submitted"] = "auto-generated"
        message["X-Cluster-Dash-Key"] = _digest(notice.key)
        message.set_content(self._wording.text(notice))
        message.add_alternative(self._wording.html(notice), subtype="html")
        return message


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _said(code: int, text: bytes | str) -> str:
    return f"{code} {printable(text.decode('utf-8', 'replace') if isinstance(text, bytes) else text, 200)}"


def _refusal(refused: dict[str, tuple[int, bytes]]) -> NotifyError:
    told = "; ".join(f"{address}: {_said(*answer)}" for address, answer in refused.items())
    return NotifyError(told, is_final=all(code >= 500 for code, _ in refused.values()))
