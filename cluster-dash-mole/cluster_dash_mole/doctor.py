"""`doctor`: looks at everything a mole needs and says, of each: what, the figure, the likely cause, one command."""

import os
import pwd
import re
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from shlex import quote
from typing import Literal

from cluster_dash_mole import __version__
from cluster_dash_mole.config import Config, ConfigError
from cluster_dash_mole.host import Host, state_folder
from cluster_dash_mole.mole import Collector, Reading, Row, Sender, SendError, describe
from cluster_dash_mole.senders import GoogleSheetsSender, HttpSender
from cluster_dash_mole.senders.http import is_json
from cluster_dash_mole.snapshot import clean
from cluster_dash_mole.spool import SPOOL, look

Mark = Literal["✔", "!", "✘"]

PROBLEM, UNREACHABLE, REFUSED, CONFIGURATION = 1, 69, 77, 78
SKEW_SECONDS = 60.0
"""A clock that differs by more makes the server move the times of what this host sends."""
_DISPLAY_CLASSES = ("0x0300", "0x0302")
_NVIDIA = "0x10de"
_CODE = re.compile(r"(?P<code>CD\d{3}) (?P<words>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one look gave.

    Attributes:
        mark: ✔ good, ! worth a look, ✘ a problem.
        what: the thing looked at.
        measured: what was seen.
        cause: why it may be so; empty where it is good.
        command: the one command that mends it or says more; empty where it is good.
        code: its code in messages and docs, such as CD101.
        exit_code: what the command ends with where this is the only problem.
    """

    mark: Mark
    what: str
    measured: str
    cause: str = ""
    command: str = ""
    code: str = ""
    exit_code: int = PROBLEM

    def __str__(self) -> str:
        """Word it: a line, and one each for the cause and the command."""
        what = f"{self.what} ({self.code})" if self.code else self.what
        lines = [f"{self.mark} {what}: {clean(self.measured)}"]
        lines += [f"    likely: {clean(self.cause)}"] if self.cause else []
        lines += [f"    try:    {clean(self.command)}"] if self.command else []
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The likely cause behind a code, and one command; it may name `{url}`, `{host}` and `{port}` of the server."""

    cause: str
    command: str


ADVICE = {
    "CD101": Advice(
        cause="a slip in address_in, or names are not resolved on this host", command="getent hosts {host}"
    ),
    "CD102": Advice(cause="the server is down, or a firewall is between", command="curl -v {url}/healthz"),
    "CD103": Advice(
        cause="it is out of date, for another name, or of a CA that this host does not know: name its file in ca_file",
        command="openssl s_client -showcerts -connect {host}:{port} -servername {host} </dev/null",
    ),
    "CD104": Advice(cause="a proxy's login page, or another program at this address", command="curl -v {url}/healthz"),
    "CD105": Advice(
        cause="http:// and https:// are mixed up, in address_in or before the server",
        command="openssl s_client -connect {host}:{port} -servername {host} </dev/null",
    ),
    "CD201": Advice(
        cause="auth_code is missing, or not the one of this server",
        command="cluster-dash-server doctor  # on the server",
    ),
    "CD202": Advice(cause="two hosts have one name, or this one has been replaced", command="hostname"),
    "CD203": Advice(cause="auth_code was made for another host", command="cluster-dash-server doctor  # on the server"),
    "CD302": Advice(cause="the clock is not kept by NTP, here or on the server", command="timedatectl"),
    "CD401": Advice(
        cause="no driver is installed, or its module is not loaded (Secure Boot refuses unsigned ones)",
        command="modprobe nvidia && nvidia-smi",
    ),
    "CD402": Advice(cause="the driver was upgraded while it was in use", command="reboot"),
    "CD403": Advice(
        cause="a GPU has fallen off the bus (Xid 79), or this container or machine has only some of them",
        command="dmesg | grep -i xid",
    ),
    "CD404": Advice(
        cause="devices not allowed: the unit needs DeviceAllow=char-nvidia rw (older drivers: char-nvidia-frontend)",
        command="ls -l /dev/nvidia*",
    ),
    "CD405": Advice(
        cause="/proc is mounted with hidepid: the unit needs SupplementaryGroups= with the group of its gid=",
        command="findmnt -no OPTIONS /proc",
    ),
}
_BUSY_OR_BROKEN = Advice(cause="the server, or a proxy before it, is in trouble", command="curl -v {url}/readyz")
_DRIVER = Advice(cause="the driver or a GPU is sick", command="dmesg | grep -i -e xid -e nvrm")


def examine(
    *,
    host: Host,
    config: Config | ConfigError,
    senders: Sequence[Sender],
    kinds: Sequence[Collector],
    environ: Mapping[str, str],
) -> Iterator[Finding]:
    """Look at everything; give each finding as soon as it is known."""
    yield from about(host)
    if isinstance(config, ConfigError):
        yield wrong_configuration(config)
    else:
        yield from configuration(config, senders)
    for sender in senders:
        if isinstance(sender, HttpSender):
            yield from server(sender, host.hostname)
        elif isinstance(sender, GoogleSheetsSender):
            yield google(sender)
    yield from hardware(kinds)
    yield owners(Path("/proc/self/mounts").read_text(errors="replace"), uid=os.geteuid(), groups=os.getgroups())
    yield state(environ, host.hostname)
    yield from spooled(state_folder(environ, host.hostname) / SPOOL, time.time())


def exit_code(findings: Sequence[Finding]) -> int:
    """Return what the command ends with: 0; 69 or 77 where the server is the only trouble; 78 for the configuration."""
    codes = {finding.exit_code for finding in findings if finding.mark == "✘"}
    for worst in (CONFIGURATION, PROBLEM, REFUSED, UNREACHABLE):
        if worst in codes:
            return worst
    return 0


def wrong_configuration(error: ConfigError) -> Finding:
    """Word a configuration that cannot be used."""
    return Finding(
        mark="✘",
        what="configuration",
        measured=str(error),
        cause="a slip of the pen in the file or variable named; docs/settings.md has every key",
        command="cluster-dash-mole --print  # once mended",
        exit_code=CONFIGURATION,
    )


def about(host: Host) -> Iterator[Finding]:
    """Say who looks: what the mole's own user may see can differ."""
    python = ".".join(map(str, sys.version_info[:3]))
    system = f"{host.os or 'Linux'}, kernel {host.kernel or '?'}"
    yield Finding(mark="✔", what="mole", measured=f"{__version__} on {host.hostname}, Python {python}, {system}")
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = "without a name"
    measured = f"{name} (uid {uid})"
    if uid == 0:
        yield Finding(
            mark="!",
            what="user",
            measured=measured,
            cause="root sees more than the mole, which needs no root: what is good here may not be so for its own user",
            command="cluster-dash-mole doctor  # as the mole's user",
        )
    else:
        yield Finding(mark="✔", what="user", measured=measured)


def configuration(config: Config, senders: Sequence[Sender]) -> Iterator[Finding]:
    """Say what is to be done, and look at who can read the secret."""
    names = ", ".join(sender.name for sender in senders)
    every = f"{config.poll.poll_interval_in_secs:g}"
    yield Finding(mark="✔", what="configuration", measured=f"{config.source}: every {every} s to {names}")
    path = config.json_sender.auth_code_file
    if path and (mode := stat.S_IMODE(Path(path).stat().st_mode)) & stat.S_IROTH:
        yield Finding(
            mark="!",
            what="auth_code_file",
            measured=f"{path} has mode {mode:04o}: every user of this host can read it",
            cause="it was made with the usual umask",
            command=f"chmod o-r {quote(path)}",
        )


def server(http: HttpSender, hostname: str) -> Iterator[Finding]:
    """Ask the server, with a post that names this host and nothing more: refused, but only after the passcode is known.

    So nothing is stored, and a passcode or token that is not taken shows all the same.
    """
    if http.proxy:
        yield Finding(mark="✔", what="proxy", measured=f"posts go by way of {http.proxy}, as the environment says")
    began = time.time()
    try:
        answer = http.post({"hostname": hostname})
    except SendError as error:
        yield _server_failed(error, http)
        return
    ended = time.time()
    spoken = is_json(answer)
    try:
        http.judge(answer)
    except SendError as error:
        if error.row is not Row.NEVER or not spoken:
            yield _server_failed(error if spoken or answer.status >= 500 else _not_ours(answer.status), http)
            return
    else:
        yield _server_failed(_not_ours(answer.status), http)
        return
    where = f"{http.url} answers in {1000 * (ended - began):.0f} ms"
    if "gzip" in answer.headers.get("accept-encoding", ""):
        yield Finding(mark="✔", what="server", measured=f"{where}, and knows this host's passcode or token")
    else:
        yield Finding(
            mark="!",
            what="server",
            measured=f"{where}, like one of the first version: whether it knows the passcode is not to be seen",
            cause="it looks at the snapshot first, and nothing whole is sent here",
            command="cluster-dash-mole --once",
        )
    yield from clock(answer.headers.get("date"), (began + ended) / 2)


def _not_ours(status: int) -> SendError:
    return SendError(f"CD104 got an answer that is not cluster-dash's ({status})", row=Row.TROUBLE)


def _server_failed(error: SendError, http: HttpSender) -> Finding:
    finding = _advised("✘", "server", str(error), otherwise=_BUSY_OR_BROKEN)
    command = finding.command.format(url=quote(http.url.rstrip("/")), host=quote(http.host), port=http.port)
    refused = error.row in (Row.WHO_ARE_YOU, Row.NEVER)
    return replace(finding, command=command, exit_code=REFUSED if refused else UNREACHABLE)


def clock(date: str | None, now: float) -> Iterator[Finding]:
    """Compare this host's clock (Unix s) with an answer's Date header, which has whole seconds."""
    try:
        ahead = now - parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return
    words = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    if abs(ahead) > SKEW_SECONDS:
        yield _advised("✘", "clock", f"CD302 {words}")
    else:
        yield Finding(mark="✔", what="clock", measured=words if abs(ahead) > 2 else "as the server's")


def google(sheets: GoogleSheetsSender) -> Finding:
    """Open the spreadsheet, without a row."""
    try:
        return Finding(mark="✔", what="Google Sheets", measured=f"{sheets.open()} can be opened")
    except SendError as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            cause, command = "the extra of this package was not installed with it", "uv sync --extra sheets"
        elif error.row is Row.TROUBLE:
            cause, command = "no way to Google from this host", "curl -v https://sheets.googleapis.com/"
        else:
            cause = "the key file, the spreadsheet's id, or with whom the spreadsheet is shared"
            command = f"grep client_email {quote(sheets.key_file)}"
        return Finding(mark="✘", what="Google Sheets", measured=str(error), cause=cause, command=command)


def hardware(kinds: Sequence[Collector], *, sys: str = "/sys") -> Iterator[Finding]:
    """Read everything once."""
    for kind in kinds:
        began = time.monotonic()
        try:
            reading = kind.collect() or Reading()
        except Exception as error:  # as in the loop: a fault of one must not hide the others
            reading = Reading(ok=False, error=describe(error))
        seconds = time.monotonic() - began
        if kind.name == "gpu":
            yield from gpus(reading, seconds, on_the_bus(sys))
        elif kind.name == "disk":
            yield disks(reading, seconds)
        elif kind.name == "slurm":
            yield from slurm(reading, seconds)
        elif reading.ok:
            yield Finding(mark="✔", what=kind.name, measured=f"read in {1000 * seconds:.0f} ms")
        else:
            yield Finding(
                mark="✘",
                what=kind.name,
                measured=reading.error or "failed",
                cause="/proc or /sys is not as on a host of its own (a container?)",
                command="cluster-dash-mole --print",
            )


def gpus(reading: Reading, seconds: float, devices: int) -> Iterator[Finding]:
    """Judge what NVML gave; `devices` are the GPUs on the PCI bus."""
    part = reading.parts.get("gpu")
    entries = part if isinstance(part, Mapping) else {}
    if not reading.ok:
        yield _advised("✘", "GPUs", reading.error or "failed", otherwise=_DRIVER)
        return
    sick = [entry for entry in entries.values() if "error" in entry]
    for entry in sick:
        name = f"GPU {entry['index']}"
        yield _advised("✘", name, str(entry["error"]).removeprefix(f"{name}: "), otherwise=_DRIVER)
    remarks = [text for text in (reading.error or "").split("; ") if text]
    if not entries:
        yield Finding(mark="✔", what="GPUs", measured=remarks[0] if remarks else "none")
        return
    for text in remarks:
        yield _advised("!", "GPUs", text, otherwise=_DRIVER)
    if len(entries) < devices:
        yield _advised("!", "GPUs", f"CD403 {len(entries)} GPUs seen, {devices} on the PCI bus")
    driver = reading.general.get("driver_version", "?")
    if healthy := len(entries) - len(sick):
        yield Finding(mark="✔", what="GPUs", measured=f"{healthy} read in {1000 * seconds:.0f} ms, driver {driver}")


def slurm(reading: Reading, seconds: float) -> Iterator[Finding]:
    """Judge what Slurm gave, and what it kept to itself."""
    found = reading.once.get("slurm")
    part = found if isinstance(found, Mapping) else {}
    if not reading.ok:
        yield Finding(
            mark="✘",
            what="Slurm",
            measured=reading.error or "failed",
            cause="slurmctld is down, this host has no slurm.conf, or its commands are elsewhere: [Slurm] bin_folder",
            command="scontrol ping",
        )
        return
    counts = [len(part[table][name]) for table, name in (("nodes", "name"), ("jobs", "id"))]
    yield Finding(
        mark="✔",
        what="Slurm",
        measured=f"{counts[0]} nodes, {counts[1]} jobs of version {part['version']} in {seconds:.1f} s",
    )
    for note in part["notes"]:
        yield Finding(
            mark="!",
            what="Slurm",
            measured=note,
            cause="what this user may not see, or this Slurm does not keep; the pages say so, too",
            command="sacctmgr show user $(id -un)",
        )


def on_the_bus(sys: str) -> int:
    """Return how many GPUs of NVIDIA are on the PCI bus."""
    count = 0
    for folder in Path(sys, "bus/pci/devices").glob("*"):
        try:
            vendor, kind = (folder / "vendor").read_text().strip(), (folder / "class").read_text().strip()
        except OSError:
            continue
        count += vendor == _NVIDIA and kind.startswith(_DISPLAY_CLASSES)
    return count


def disks(reading: Reading, seconds: float) -> Finding:
    """Judge what the file systems gave."""
    part = reading.parts.get("disk")
    measured = f"{len(part) if isinstance(part, Mapping) else 0} read in {1000 * seconds:.0f} ms"
    if reading.ok:
        return Finding(mark="✔", what="disks", measured=measured)
    return Finding(
        mark="!",
        what="disks",
        measured=f"{measured}; {reading.error}",
        cause="a network mount whose server does not answer; the mole leaves it out and goes on",
        command="findmnt --real",
    )


def owners(mounts: str, *, uid: int, groups: Sequence[int]) -> Finding:
    """Judge by the text of /proc/mounts whether a user sees whose all processes are."""
    found = re.search(r"^\S+ /proc proc (\S*\bhidepid=(?!0|off)\S*)", mounts, re.MULTILINE)
    if found is None:
        return Finding(mark="✔", what="owners of processes", measured="/proc shows them")
    gid = re.search(r"\bgid=(\d+)", found[1])
    if uid != 0 and gid is not None and int(gid[1]) in groups:
        return Finding(mark="✔", what="owners of processes", measured=f"/proc shows them to group {gid[1]}")
    return _advised("!", "owners of processes", f"CD405 /proc hides them ({found[1]})")


def state(environ: Mapping[str, str], hostname: str) -> Finding:
    """Look at the folder that the mole would keep its state in. It is not made: it would belong to who looks."""
    folder = state_folder(environ, hostname)
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return Finding(
            mark="✔", what="state folder", measured=f"{folder} can be {'written' if folder.exists() else 'made'}"
        )
    return Finding(
        mark="!",
        what="state folder",
        measured=f"{folder} cannot be {'written' if folder.exists() else 'made'} by uid {os.geteuid()}",
        cause="it belongs to another user, or the file system is read-only; the mole runs without it",
        command=f"ls -ld {quote(str(nearest))}",
    )


def spooled(folder: Path, now: float) -> Iterator[Finding]:
    """Say what lies on disk that the server has not got; `now` in Unix s. Where there never was anything, nothing."""
    if not folder.exists():
        return
    try:
        found = look(folder)
    except OSError as error:
        measured = f"{folder} cannot be read: {error.strerror}"
        cause, command = "it belongs to the mole's own user", "cluster-dash-mole doctor  # as the mole's user"
        yield Finding(mark="!", what="spool", measured=measured, cause=cause, command=command)
        return
    if found.damaged:
        yield Finding(
            mark="!",
            what="spool",
            measured=f"{found.damaged} damaged files were set aside in {folder}; the mole's log says what was lost",
            cause="the disk, or a power cut in the middle of an outage",
            command=f"rm {quote(str(folder))}/*.bad-*",
        )
    if found.oldest_at is None:
        yield Finding(mark="✔", what="spool", measured="nothing waits for the server")
        return
    hours = (now - found.oldest_at) / 3600
    age = f"{60 * hours:.0f} min" if hours < 2 else f"{hours:.0f} h"
    yield Finding(
        mark="!",
        what="spool",
        measured=f"{found.snapshots} snapshots wait for the server, the oldest for {age}: {found.size / 2**20:.1f} MiB",
        cause="the server was away; they arrive by themselves when it is back, a hundred a second",
        command="cluster-dash-mole run  # where none runs yet",
    )


def _advised(mark: Mark, what: str, text: str, *, otherwise: Advice | None = None) -> Finding:
    """Return a finding of a text that may begin with a code, with the advice for it."""
    found = _CODE.match(text)
    advice = ADVICE.get(found["code"]) if found else None
    advice = advice or otherwise or Advice(cause="", command="")
    code, words = (found["code"], found["words"]) if found else ("", text)
    return Finding(mark=mark, what=what, measured=words, code=code, cause=advice.cause, command=advice.command)
