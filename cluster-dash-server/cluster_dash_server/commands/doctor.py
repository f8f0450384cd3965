"""`doctor`: looks at everything a server needs and says, of each: what, the figure, the likely cause, one command."""

import ctypes
import dataclasses
import errno
import json
import os
import resource
import shlex
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from cluster_dash_server import control, viewer_access
from cluster_dash_server.access.auth import SHIPPED_PASSCODE, names_loopback
from cluster_dash_server.access.tokens import TokenError, TokenFile, Tokens
from cluster_dash_server.history.folder import NETWORK_FILE_SYSTEMS, file_system
from cluster_dash_server.history.settings import HistorySettings
from cluster_dash_server.ledger.settings import LedgerSettings
from cluster_dash_server.notices.receivers import AlertSettings, Receiver
from cluster_dash_server.port_holder import Holder, holder_of
from cluster_dash_server.probe import Answer, ask
from cluster_dash_server.relaying.centre import Centre, CentreError
from cluster_dash_server.relaying.relay import RelaySettings
from cluster_dash_server.serving import SPARE_FILES
from cluster_dash_server.settings import ConfigError, IngestSettings, Reading, ServerSettings, Settings
from cluster_dash_server.sharing import kinds
from cluster_dash_server.sharing.engine import Away
from cluster_dash_server.sharing.kinds import LiveSettings
from cluster_dash_server.snapshot import printable

Mark = Literal["✔", "!", "✘"]

SHORT_PASSCODE = 12
"""Characters below which a passcode that never changes can be guessed in the time there is."""
ASK_SECONDS = 3.0
_FILES = resource.RLIMIT_NOFILE


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one look gave.

    Attributes:
        mark: ✔ good, ! worth a look, ✘ a problem.
        what: the thing looked at.
        measured: what was seen.
        cause: why it may be so; empty where it is good.
        command: the one command that mends it or says more; empty where it is good.
        code: its code in messages and docs, such as CD601.
    """

    mark: Mark
    what: str
    measured: str
    cause: str = ""
    command: str = ""
    code: str = ""

    @property
    def is_problem(self) -> bool:
        """Whether the server cannot do its work so."""
        return self.mark == "✘"

    def __str__(self) -> str:
        """Word it: a line, and one each for the cause and the command."""
        what = f"{self.what} ({self.code})" if self.code else self.what
        lines = [f"{self.mark} {what}: {printable(self.measured)}"]
        lines += [f"    likely: {self.cause}"] if self.cause else []
        lines += [f"    try:    {self.command}"] if self.command else []
        return "\n".join(lines)


def examine(reading: Reading) -> Iterator[Finding]:
    """Look at everything; give each finding as soon as it is known."""
    settings = reading.settings
    yield Finding(mark="✔", what="settings", measured=f"{reading.file or 'no file; defaults'}, usable")
    if settings.relay.to is None:
        yield from passcode(settings, reading.file)
    running = _ours(
        ask(
            settings.server.host,
            settings.server.port,
            f"{settings.server.base_path}/readyz",
            seconds=ASK_SECONDS,
            name=next(iter(settings.viewers.trusted_hosts), None),
            is_secure=settings.server.speaks_tls,
        )
    )
    holder = holder_of(settings.server.port)
    yield listening(settings.server, running, holder)
    yield open_files(settings.limits.max_hosts, None if running is None else holder)
    if settings.relay.to is not None:  # it keeps nothing, knows no secret and has no viewers
        yield from centre(settings.relay, settings.relay.to)
        yield engines()
        yield clock(kernel_clock_state())
        yield from reach(settings)
        return
    yield data_folder(settings.server.data)
    yield from network_folder(control.find_data_folder(settings.server.data, os.environ))
    if settings.history.kind == "remote":
        yield from engine_of_history(settings.history)
    if settings.live.is_shared:
        yield engine_of_the_live_view(settings.live)
    if settings.ledger.kind == "postgresql":
        yield database_of_ledger(settings.ledger)
    yield from how_many(settings)
    yield engines()
    yield clock(kernel_clock_state())
    yield from reach(settings)
    folder = control.find_data_folder(settings.server.data, os.environ)
    yield who_posts_by(settings, folder)
    yield who_looks(settings)
    yield from who_is_told(settings.alerts, reading.file)


def unusable_settings(text: str) -> Finding:
    """Word settings that cannot be used; nothing else can be looked at then."""
    return Finding(
        mark="✘",
        what="settings",
        measured=text,
        cause="a slip of the pen in the file or variable named",
        command="cluster-dash-server check-config",
        code="CD602",
    )


def centre(relay: RelaySettings, to: str) -> Iterator[Finding]:
    """Look at the server that a relay passes snapshots on to: whether it answers, and is one of ours."""
    asked = shlex.join(["curl", *(["--cacert", relay.ca_file] if relay.ca_file else []), f"{to.rstrip('/')}/readyz"])
    try:
        with closing(Centre(to, ca_file=relay.ca_file)) as way:
            said = way.exchange("GET", "/readyz")
    except (CentreError, OSError) as error:
        yield Finding(
            mark="✘",
            what="centre",
            measured=str(error),
            cause="it is not running, a firewall stands between, or [relay] to or ca_file names another one",
            command=asked,
        )
        return
    found = _object(said.body)
    if not {"version", "hosts"} <= set(found):
        yield Finding(
            mark="✘",
            what="centre",
            measured=f"{to} answers {said.status}, and not in the words of a cluster-dash server",
            cause="a proxy's sign-in page or redirect, or a path is missing in [relay] to",
            command=asked,
        )
        return
    told = f"{to} is cluster-dash-server {found['version']} with {found['hosts']} hosts"
    if said.status != 200:
        yield Finding(
            mark="!", what="centre", measured=f"{told}, and not well", cause="see what it says", command=asked
        )
    elif to.startswith("http://") and relay.allow_plaintext:
        yield Finding(
            mark="!",
            what="centre",
            measured=f"{told}; the secrets of all hosts go there unencrypted",
            cause="[relay] allow_plaintext",
            command="see setup.md, the section on TLS",
        )
    else:
        yield Finding(mark="✔", what="centre", measured=told)


def _object(body: bytes) -> Mapping[str, object]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def passcode(settings: Settings, file: Path | None) -> Iterator[Finding]:
    """Look at the passcode, and at who can read the file that holds it."""
    ingest, far = settings.ingest, not names_loopback(settings.server.host)
    if ingest.passcode is None:
        yield Finding(
            mark="✘" if far else "!",
            what="passcode",
            measured="none set: the shipped one is accepted from the server's own machine only",
            cause="the site has not chosen one yet, and the moles of other hosts are answered 401; "
            "or the server's unit has one, which this shell was not told of",
            command="(umask 077; openssl rand -hex 24 > passcode); "
            "CLUSTER_DASH_INGEST__PASSCODE_FILE=passcode cluster-dash-server serve",
            code="CD204",
        )
        return
    if ingest.passcode == SHIPPED_PASSCODE:
        yield _weak("the one that everybody has with the software")
    elif len(ingest.passcode) < SHORT_PASSCODE:
        yield _weak(f"{len(ingest.passcode)} characters")
    else:
        yield Finding(mark="✔", what="passcode", measured="the site's own")
    yield from _secret_file(ingest, file)


def who_posts_by(settings: Settings, folder: Path) -> Finding:
    """Look at the tokens, in the data folder or in the database of replicas."""
    if settings.ledger.kind != "postgresql" or settings.ledger.url is None:
        return who_posts(settings, Tokens(TokenFile(folder), time.time))
    from cluster_dash_server.ledger.access import tokens_at  # what it needs is an extra

    with tokens_at(settings.ledger.url) as tokens:
        return who_posts(settings, tokens)


def who_posts(settings: Settings, tokens: Tokens) -> Finding:
    """Look at the tokens of hosts, and at what is taken beside them."""
    try:
        tokens.load()
    except TokenError as error:
        return Finding(
            mark="✘",
            what="tokens",
            measured=str(error),
            cause="another release wrote it, or it belongs to another user",
            command="cluster-dash-server token list",
        )
    now = time.time()
    count = sum(token.kind == "host" and token.is_valid(now) for token, _ in tokens.all())
    if settings.ingest.allow_plaintext_tokens and not names_loopback(settings.server.host):
        return Finding(
            mark="!",
            what="tokens",
            measured=f"{count} of hosts, taken unencrypted from the network, too",
            cause="[ingest] allow_plaintext_tokens: who listens in can speak for the host he heard",
            command="see setup.md, the section on TLS",
        )
    if count == 0 and settings.ingest.require_tokens:
        return Finding(
            mark="✘",
            what="tokens",
            measured="none, and [ingest] require_tokens takes nothing else",
            cause="no host has enrolled yet",
            command="cluster-dash-server token new --enrol",
        )
    beside = (
        ", and nothing else is taken" if settings.ingest.require_tokens else ", beside the passcode" if count else ""
    )
    return Finding(mark="✔", what="tokens", measured=f"{count or 'none'} of hosts{beside}")


def who_looks(settings: Settings) -> Finding:
    """Look at who may look at the pages."""
    viewers = settings.viewers
    try:
        viewer_access.gate(settings, Tokens(TokenFile(Path(os.devnull)), time.time), time.time)
        viewer_access.provider(settings, time.time)
    except ConfigError as error:
        return Finding(
            mark="✘",
            what="viewers",
            measured=str(error),
            cause="a setting of this way to sign in is missing or wrong",
            command="cluster-dash-server check-config",
        )
    if viewers.mode == "open" and not names_loopback(settings.server.host):
        return Finding(
            mark="!",
            what="viewers",
            measured="everybody who reaches the server sees hosts, users and programs",
            cause='[viewers] mode is "open", as it comes',
            command="cluster-dash-server user add NAME --file users",
        )
    open_too = ", and who has not signed in" if viewers.allow_anonymous else ""
    told = "everybody on this machine" if viewers.mode == "open" else f"by {viewers.mode}{open_too}"
    return Finding(mark="✔", what="viewers", measured=told)


def who_is_told(alerts: AlertSettings, file: Path | None) -> Iterator[Finding]:
    """Look at the receivers of alerts, and at what could be read by others on the way to them."""
    names = ", ".join(receiver.name for receiver in alerts.receivers)
    told = f"told to {names}; try it: cluster-dash-server notify-test" if names else "on the page /alerts alone"
    yield Finding(mark="✔", what="alerts", measured=told)
    is_near = alerts.mail_server is not None and names_loopback(alerts.mail_server)
    if alerts.mail_server is not None and alerts.mail_security == "none" and not is_near:
        what = "and the password of mail_user with them" if alerts.mail_user else "and their links with them"
        yield Finding(
            mark="!",
            what="mail",
            measured=f"mails go to {alerts.mail_server} unencrypted, {what}",
            cause='[alerts] mail_security is "none"',
            command='set mail_security = "starttls", then: cluster-dash-server notify-test',
        )
    for receiver in alerts.receivers:
        url = urlsplit(receiver.url or "")
        if url.scheme == "http" and receiver.token is not None and not names_loopback(url.netloc):
            yield Finding(
                mark="!",
                what=f"receiver {receiver.name}",
                measured="its token goes over http://, where others can read it",
                cause="its url is not https://",
                command=f"cluster-dash-server notify-test {receiver.name}",
            )
    if file is not None and stat.S_IMODE(file.stat().st_mode) & stat.S_IROTH and _holds_secrets(alerts):
        yield Finding(
            mark="!",
            what="secrets of alerts",
            measured=f"{file} holds them, and every user of this machine can read it",
            cause="they stand in the file itself, not in a …_file of their own",
            command=f"chmod o-r {shlex.quote(str(file))}",
        )


def _holds_secrets(alerts: AlertSettings) -> bool:
    """Say whether a secret is set that came from no file of its own."""
    sections: tuple[AlertSettings | Receiver, ...] = (alerts, *alerts.receivers)
    return any(
        getattr(section, each.name) is not None and getattr(section, f"{each.name}_file") is None
        for section in sections
        for each in dataclasses.fields(section)
        if each.metadata.get("secret")
        # the address of an Alertmanager is no secret; of a chat it is
        and not (isinstance(section, Receiver) and section.kind == "alertmanager" and each.name == "url")
    )


def _weak(measured: str) -> Finding:
    return Finding(
        mark="!",
        what="passcode",
        measured=measured,
        cause="anyone who knows or guesses it can speak for any host",
        command="openssl rand -hex 24",
        code="CD204",
    )


def _secret_file(ingest: IngestSettings, file: Path | None) -> Iterator[Finding]:
    path = file if ingest.passcode_file is None else Path(ingest.passcode_file)
    if path is None or (ingest.passcode_file is None and "passcode" not in path.read_text(encoding="utf-8")):
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & stat.S_IROTH:
        yield Finding(
            mark="!",
            what="passcode file",
            measured=f"{path} has mode {mode:04o}: every user of this machine can read it",
            cause="it was made with the usual umask",
            command=f"chmod o-r {shlex.quote(str(path))}",
        )


def listening(server: ServerSettings, running: Mapping[str, object] | None, holder: Holder | None) -> Finding:
    """Look at the address: a server of ours is there, or it is free, or somebody else has it.

    Args:
        server: where a server is to listen.
        running: what /readyz says there; None: nothing of ours answers.
        holder: who has the port.
    """
    where = f"{server.host}:{server.port}"
    if running is not None:
        told = f"cluster-dash-server {running['version']} answers at {where}, with {running['hosts']} hosts"
        return Finding(mark="✔", what="server", measured=told)
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    try:
        socket.create_server((server.host, server.port), family=family).close()
    except OSError as error:
        return _cannot_listen(server, where, error, holder)
    return Finding(mark="✔", what="address", measured=f"{where} is free")


def _ours(answer: Answer | None) -> Mapping[str, object] | None:
    """Return the body of /readyz; None where something else answers."""
    return answer.json if answer is not None and answer.json and {"version", "hosts"} <= set(answer.json) else None


def _cannot_listen(server: ServerSettings, where: str, error: OSError, holder: Holder | None) -> Finding:
    if error.errno == errno.EADDRINUSE:
        return Finding(
            mark="✘",
            what=f"port {server.port}",
            measured=f"in use by {holder or 'a process that cannot be seen'}",
            cause="another program, or a server of another address or path, listens there",
            command=f"cluster-dash-server serve --port {server.port + 1}",
            code="CD601",
        )
    if error.errno == errno.EACCES:
        cause, command = "ports below 1024 are root's", "cluster-dash-server serve --port 8080"
    else:
        cause, command = "this machine has no such address", "ip -brief address"
    return Finding(mark="✘", what=f"address {where}", measured=str(error.strerror), cause=cause, command=command)


def open_files(max_hosts: int, holder: Holder | None) -> Finding:
    """Look at how many connections may be open: in the running server, else in one that this shell would start.

    Args:
        max_hosts: hosts that the server takes.
        holder: the running server; None: there is none.
    """
    pid = None if holder is None else holder.pid
    try:
        # a server raises its own limit to the hard one at start
        limit = resource.getrlimit(_FILES)[1] if pid is None else resource.prlimit(pid, _FILES)[0]
    except OSError:
        return Finding(mark="✔", what="open files", measured="the running server's limit is not for this user to read")
    whose = "here" if pid is None else "of the running server"
    needed = max_hosts + SPARE_FILES
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return Finding(mark="✔", what="open files", measured=f"limit {whose} enough for {max_hosts} hosts")
    return Finding(
        mark="!",
        what="open files",
        measured=f"limit {whose} {limit}; {max_hosts} hosts at once need {needed}",
        cause="a limit of the login, the container or the unit (LimitNOFILE=)",
        command=f"prlimit --nofile={needed} cluster-dash-server serve",
    )


def data_folder(folder: str | None) -> Finding:
    """Look at the folder for what the server keeps."""
    if folder is None:
        return Finding(
            mark="✔", what="data folder", measured=f"none named: {control.find_data_folder(None, os.environ)}"
        )
    path = Path(folder)
    if path.is_dir() and os.access(path, os.W_OK | os.X_OK):
        return Finding(mark="✔", what="data folder", measured=f"{path} can be written")
    return Finding(
        mark="✘",
        what="data folder",
        measured=f"{path} {'cannot be written' if path.is_dir() else 'is no folder'} by uid {os.geteuid()}",
        cause="it was not made for the user that the server runs as",
        command=f"install -d -m 0750 -o {os.geteuid()} {shlex.quote(folder)}",
    )


def network_folder(folder: Path, mounts: str | None = None) -> Iterator[Finding]:
    """Look at what the data folder is on: history is slow and not safe on a file system of a network.

    Args:
        folder: the folder; where it is not there yet, what it will be made in is looked at.
        mounts: the text of /proc/self/mountinfo; None: it is read.
    """
    kind = file_system(folder, mounts)
    if kind in NETWORK_FILE_SYSTEMS:
        yield Finding(
            mark="!",
            what="data folder",
            measured=f"{folder} is on {kind}, a file system of a network: history is slower there, and lost when "
            "several machines write",
            cause="the home or the folder named is shared by the machines of the cluster",
            command="cluster-dash-server serve --data /var/lib/cluster-dash",
        )


def engine_of_history(history: HistorySettings) -> Iterator[Finding]:
    """Look at the engine that keeps figures: whether it takes them, and whether it can be asked."""
    from cluster_dash_server.history.remote import store as remote  # only who has one needs it

    try:
        remote.check(history)
    except (remote.AccessError, remote.StoreError) as error:
        yield Finding(
            mark="✘",
            what="engine of history",
            measured=str(error),
            cause="it is not running, takes no remote writes, or wants other credentials",
            command="see docs/history.md, the section on engines",
        )
        return
    window = "any age" if history.window_seconds is None else f"up to {history.window_seconds / 3600:g} hours old"
    yield Finding(
        mark="✔", what="engine of history", measured=f"{history.write_url} takes figures ({window}) and can be asked"
    )


def engine_of_the_live_view(live: LiveSettings) -> Finding:
    """Look at the engine that replicas share the live view by: whether it can be reached, and takes what they put."""
    engine = kinds.engine_of(live)
    try:
        measured = engine.check()
    except Away as error:
        return Finding(
            mark="✘",
            what="engine of the live view",
            measured=str(error),
            cause="it is not running, a firewall stands between, or it wants another password",
            command='redis-cli -u "$(cat FILE)" ping, where FILE is [live] url_file',
        )
    finally:
        engine.close()
    return Finding(mark="✔", what="engine of the live view", measured=measured)


def how_many(settings: Settings) -> Iterator[Finding]:
    """Look at whether several servers may run by these settings: they must share all that is kept."""
    shares = {
        "[live] kind": settings.live.is_shared,
        "[history] kind": settings.history.kind != "sqlite",
        "[ledger] kind": settings.ledger.kind == "postgresql",
    }
    if not (shares["[live] kind"] or shares["[ledger] kind"]):
        return  # one server, with or without an engine for its figures
    own = [name for name, is_shared in shares.items() if not is_shared]
    if own:
        yield Finding(
            mark="!",
            what="replicas",
            measured=f"only one server may run by these settings: {' and '.join(own)} "
            f"{'is' if len(own) == 1 else 'are'} of one server",
            cause="replicas of which each sees a part of the hosts would raise false alerts",
            command="see docs/growing.md, the section on replicas",
        )
    else:
        yield Finding(mark="✔", what="replicas", measured="several may run: they share all that is kept")


def database_of_ledger(ledger: LedgerSettings) -> Finding:
    """Look at the database that keeps alerts, events and tokens: whether it can be reached and written."""
    from cluster_dash_server import postgresql  # only who has one needs it

    database = postgresql.Database(ledger.url or "", connections=1)
    try:
        problem = database.problem()
    except postgresql.PostgresqlError as error:
        return Finding(
            mark="✘",
            what="database",
            measured=str(error),
            cause="it is not running, a firewall stands between, or it wants other credentials",
            command='psql "$(cat FILE)" -c "SELECT 1", where FILE is [ledger] url_file',
        )
    finally:
        database.close()
    if problem is not None:
        return Finding(
            mark="✘",
            what="database",
            measured=problem,
            cause="it was made for another user, by an older system, or where the system's encoding was not UTF-8",
            command="createdb --owner dash --encoding UTF8 --locale C --template template0 dash",
        )
    return Finding(mark="✔", what="database", measured=f"{database.where} can be asked and written")


def engines() -> Finding:
    """Look at the parts that make a post cheap."""
    missing = [name for name in ("msgspec", "orjson", "jsonschema_rs") if find_spec(name) is None]
    if not missing:
        return Finding(mark="✔", what="speed", measured="msgspec, orjson and jsonschema-rs are there")
    times = "twice" if missing == ["msgspec"] else "up to a hundred times"
    return Finding(
        mark="!",
        what="speed",
        measured=f"without {' and '.join(missing)} a post costs {times} as much",
        cause="no wheels for this kind of machine; right all the same, and enough for some dozens of hosts",
        command="python -m pip install msgspec orjson jsonschema-rs",
    )


def kernel_clock_state() -> int | None:
    """Return the kernel's own word on its clock (adjtimex): 5 is not synchronised; None where it may not be asked."""
    timex = ctypes.create_string_buffer(512)  # struct timex, all zero: read, change nothing
    try:
        state = int(ctypes.CDLL(None).adjtimex(timex))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state


def clock(state: int | None) -> Finding:
    """Look at the clock: hosts whose own differs by more than a minute are flagged against it."""
    if state != 5:
        return Finding(mark="✔", what="clock", measured="unknown" if state is None else "synchronised")
    return Finding(
        mark="!",
        what="clock",
        measured="the kernel says that it is not synchronised",
        cause="no chrony, ntpd or systemd-timesyncd runs here (in a container: on its host)",
        command="timedatectl",
        code="CD302",
    )


def reach(settings: Settings) -> Iterator[Finding]:
    """Look at how people and moles come here: names, and whether anybody can listen in."""
    far, url = not names_loopback(settings.server.host), settings.server.public_url
    name = None if url is None else urlsplit(url).hostname
    trusted = {host.lower() for host in settings.viewers.trusted_hosts}
    if trusted and name is not None and name not in trusted:
        yield Finding(
            mark="✘",
            what="names",
            measured=f"public_url names {name}, which [viewers] trusted_hosts lacks: it is answered 421",
            cause="one of the two was changed without the other",
            command="cluster-dash-server check-config",
        )
    if far and settings.server.speaks_tls:
        yield Finding(mark="✔", what="encryption", measured="TLS of the server itself")
    elif far and url is not None and url.startswith("https://"):
        yield Finding(
            mark="!",
            what="encryption",
            measured=f"people come by {url}, but {settings.server.host}:{settings.server.port} is open beside it",
            cause="with a proxy on this machine the server need not listen to the network",
            command="cluster-dash-server serve --host 127.0.0.1",
        )
    elif far:
        yield Finding(
            mark="!",
            what="encryption",
            measured="none: passcode and pages cross the network in the clear",
            cause="no proxy with TLS stands in front, or [server] public_url does not name it yet",
            command="see setup.md, the section on TLS",
        )
    else:
        told = "reached from this machine only" if url is None else f"reached by {url}"
        yield Finding(mark="✔", what="reach", measured=told)
