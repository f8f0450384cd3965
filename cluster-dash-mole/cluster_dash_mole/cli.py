"""The command `cluster-dash-mole`: its arguments, and what each command does."""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from cluster_dash_mole import __version__, collectors, logs, parts, pick
from cluster_dash_mole.collectors.gpu import GpuCollector
from cluster_dash_mole.config import Config, ConfigError, before_enrolment, for_listening, load
from cluster_dash_mole.delivery import Delivery
from cluster_dash_mole.host import HostPast, SnapshotCounter, read_host, state_folder
from cluster_dash_mole.lane import Lane
from cluster_dash_mole.mole import Mole, Row, Sender, SendError, SystemClock
from cluster_dash_mole.notify import ServiceManager
from cluster_dash_mole.senders import HttpSender

log = logging.getLogger("cluster_dash_mole")

DONE, PROBLEM, USAGE, UNREACHABLE, REFUSED, CONFIGURATION = 0, 1, 2, 69, 77, 78
SHUTTING_DOWN = Path("/run/nologin")  # a machine that goes down says so: it may not come back, and is to be missed
GOODBYE_SECONDS = 2.0  # for the word that the mole was stopped on purpose


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser, words = _parser(), sys.argv[1:] if arguments is None else arguments
    given = argparse.Namespace(config=None, once=False, show=False, verbose=False, log_format="text")
    try:
        parser.parse_args(words, given)
    except SystemExit as end:
        # a unit starts what ends with 2 again and again; what stands before the command may be the wrong part
        if end.code == USAGE and "run" in words and given.command in (None, "run"):
            return CONFIGURATION
        raise
    if not (given.command or given.once or given.show):
        parser.print_usage(sys.stderr)
        return USAGE
    logs.set_up(verbose=given.verbose, log_format=given.log_format)
    if not sys.platform.startswith("linux"):
        log.error("the mole runs on Linux only: it reads /proc (this is %s)", sys.platform)
        return CONFIGURATION
    _end_on_signals(PROBLEM if given.once or given.show else DONE)
    if given.command == "simulate":
        return _simulate(given)
    if given.command == "pick":
        return _pick(given)
    if given.command == "doctor":
        return _doctor(given.config)
    try:
        if given.command == "enrol":
            return _enrol(given)
        listen: str | None = getattr(given, "listen", None)
        config = load(given.config, os.environ) if not listen else for_listening(listen, given.config, os.environ)
        if given.show:
            return _show(config)
        return _once(config) if given.once else _run(config)
    except ConfigError as error:
        log.error("%s", error)
        return CONFIGURATION


class _Parser(argparse.ArgumentParser):
    """Reads a command line; refuses an empty value, which is a variable that is not set in most cases."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.register("type", None, _said)
        self.register("type", Path, lambda text: Path(_said(text)))


def _said(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("got an empty value: a variable that is not set?")
    return text


def _parser() -> argparse.ArgumentParser:
    logged = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    logged.add_argument("-v", "--verbose", action="store_true", help="log more")
    logged.add_argument("--log-format", choices=["text", "json"], help="how to log (default: text)")
    options = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, parents=[logged])
    options.add_argument("-c", "--config", metavar="FILE", type=Path, help="read this file, not the host's own")
    running = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, parents=[options])
    running.add_argument("--once", action="store_true", help="send one snapshot and end: 0 if it was taken")
    running.add_argument("--print", action="store_true", dest="show", help="print the JSON of one snapshot and end")
    parser: argparse.ArgumentParser = _Parser(
        prog="cluster-dash-mole",
        description="Reads the hardware of this host and posts it to a server.",
        parents=[running],
    )
    parser.add_argument("--version", action="version", version=f"cluster-dash-mole {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    run = commands.add_parser("run", help="take and send a snapshot every interval, for ever", parents=[running])
    run.add_argument(
        "--listen", metavar="[HOST]:PORT", help="answer Prometheus there, under dcgm-exporter's names, such as :9400"
    )
    commands.add_parser("doctor", help="look for what may keep this host from the dashboard", parents=[options])
    _add_enrol(commands.add_parser("enrol", help="trade a code for a token of this host", parents=[options]))
    _add_pick(
        commands.add_parser(
            "pick", help="choose free GPUs of this host: prints CUDA_VISIBLE_DEVICES=…", parents=[logged]
        )
    )
    _add_simulate(commands.add_parser("simulate", help="post snapshots of hosts that do not exist", parents=[logged]))
    return parser


def _add_enrol(parser: argparse.ArgumentParser) -> None:
    parser.description = "Trades a code for a token of this host, keeps it (0600), and sends the first snapshot."
    parser.add_argument("url", metavar="URL", help="the server: https://HOST[:PORT][/PATH]")
    parser.add_argument(
        "code", metavar="CODE", help="from `cluster-dash-server token new --enrol`; -: from standard input"
    )
    parser.add_argument(
        "--file", type=Path, metavar="FILE", help="where to keep it (default: the configured auth_code_file)"
    )
    parser.add_argument("--allow-plaintext", action="store_true", help="also unencrypted, where others can read it")


def _enrol(given: argparse.Namespace) -> int:
    from cluster_dash_mole import enrol  # a mole that runs has no use for it: memory

    config = before_enrolment(given.config, os.environ)
    try:
        address = enrol.address_of(given.url)
    except ValueError as error:
        log.error("enrol: %s", error)
        return USAGE
    host, code = parts.host(config), sys.stdin.readline().strip() if given.code == "-" else given.code
    if not code:
        log.error("enrol: standard input holds no code")
        return USAGE
    settings = config.json_sender
    path = given.file or Path(settings.auth_code_file or state_folder(os.environ, host.hostname) / enrol.TOKEN_FILE)
    allow = given.allow_plaintext or settings.allow_plaintext

    def sender(url: str, secret: str | None) -> HttpSender:
        made = HttpSender(
            address=url,
            auth_code=secret,
            clock=SystemClock(),
            environ=os.environ,
            ca_file=settings.ca_file,
            allow_plaintext=allow,
        )
        made.refuse_in_clear("a code" if secret is None else "a token")
        return made

    try:
        with enrol.TokenPlace(path) as place:
            token = enrol.trade(sender(address, None), code, host)
            place.keep(token)
        log.info("%s has a token of its own, in %s", host.hostname, path)
        if settings.auth_code_file is None or Path(settings.auth_code_file) != path:
            log.info('name it in the configuration: [Json_Sender_Logger] auth_code_file = "%s"', path)
        sender(given.url, token).send(parts.one_shot(config).snapshot())
    except ValueError as error:
        log.error("enrol: %s", error)
        return CONFIGURATION
    except OSError as error:
        log.error("enrol: %s: cannot be written: %s", path, error.strerror)
        return CONFIGURATION
    except SendError as error:
        log.error("enrol: %s", error)
        return UNREACHABLE if error.row in (Row.TROUBLE, Row.NOT_NOW) else REFUSED
    log.info("the first snapshot was taken")
    return DONE


def _add_pick(parser: argparse.ArgumentParser) -> None:
    parser.description = "Prints CUDA_VISIBLE_DEVICES=… of free GPUs of this host; 1 where there are not enough."
    parser.add_argument("-n", "--count", type=_whole(1), default=1, metavar="N", help="how many GPUs (default: 1)")
    parser.add_argument(
        "--min-free", type=_size, default=0.0, metavar="SIZE", help="memory free on each, such as 20G (20 × 2^30 bytes)"
    )
    parser.add_argument("--uuid", action="store_true", help="name them by uuid, not by index")


def _size(text: str) -> float:
    try:
        return pick.parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _pick(given: argparse.Namespace) -> int:
    gpus = GpuCollector(interval=parts.ONE_SHOT_INTERVAL, clock=SystemClock()).collect().parts["gpu"]
    if not isinstance(gpus, Mapping) or not (found := pick.candidates(gpus)):
        sys.stderr.write(f"{pick.why_none(gpus)}\n")
        return PROBLEM
    chosen = pick.choose(found, count=given.count, min_free_mib=given.min_free)
    if isinstance(chosen, str):
        sys.stderr.write(f"{chosen}\n")
        return PROBLEM
    sys.stdout.write(f"{pick.variable(chosen, by_uuid=given.uuid or pick.differ(gpus))}\n")
    return DONE


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.description = "Posts believable snapshots of hosts that do not exist: for a demo, and for load tests."
    parser.add_argument("--server", required=True, metavar="URL", help="where to post: http://HOST:PORT")
    parser.add_argument("--hosts", type=_whole(1), default=8, metavar="N", help="how many hosts (default: 8)")
    parser.add_argument("--gpus", type=_whole(0), default=8, metavar="M", help="GPUs of each (default: 8)")
    parser.add_argument(
        "--interval", type=_seconds, default=5.0, metavar="S", help="seconds between two posts of a host (default: 5)"
    )
    parser.add_argument(
        "--seed", type=_whole(0), default=1, metavar="N", help="the same seed gives the same night (default: 1)"
    )
    parser.add_argument(
        "--faults", action="store_true", help="let things go wrong: lost GPUs, silent hosts, full disks"
    )
    parser.add_argument("--slurm", action="store_true", help="let one host tell of a Slurm: queue, nodes, jobs")
    parser.add_argument("--past", type=_hours, default=0.0, metavar="H", help="tell history of the H hours before, too")
    parser.add_argument("--seconds", type=_seconds, metavar="S", help="end by itself after so long")
    parser.add_argument("--auth-code-file", type=Path, metavar="FILE", help="a file that holds the passcode")
    parser.add_argument("--quiet", action="store_true", help="do not say every 5 s how it goes")
    parser.add_argument("--json", action="store_true", help="print what became of the posts as JSON")


def _whole(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isdecimal() or len(text) > 15 or int(text) < least:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number >= {least}")
        return int(text)

    return whole


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected seconds, > 0 and <= 86400")
    return seconds


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = -1.0
    if not 0 <= hours <= 168:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected hours, >= 0 and <= 168: a server keeps a week of them"
        )
    return hours


def _simulate(given: argparse.Namespace) -> int:
    from cluster_dash_mole import simulate  # a mole that runs has no use for it: memory

    try:
        address = simulate.parse_server(given.server)
    except ValueError as error:
        log.error("simulate: %s", error)
        return USAGE
    try:
        simulate.run(
            simulate.Simulation(
                address=address,
                auth_code=simulate.read_auth_code(
                    given.auth_code_file, os.environ.get("CLUSTER_DASH_JSON_SENDER_LOGGER__AUTH_CODE")
                ),
                hosts=given.hosts,
                gpus=given.gpus,
                interval_seconds=given.interval,
                seed=given.seed,
                faults=given.faults,
                seconds=given.seconds,
                quiet=given.quiet,
                as_json=given.json,
                slurm=given.slurm,
                past_seconds=3600 * given.past,
            )
        )
    except ValueError as error:
        log.error("simulate: %s", error)
        return CONFIGURATION
    except SendError as error:
        log.error("simulate: %s", error)
        return UNREACHABLE if error.row in (Row.TROUBLE, Row.NOT_NOW) else REFUSED
    return DONE


def _end_on_signals(code: int) -> None:
    """End the main thread wherever it is; the others are daemons, and the NVML child ends by itself."""
    is_ending = False

    def stop(number: int, _: FrameType | None) -> None:
        # A second signal while the first one is obeyed would print a trace. So would SIG_IGN, where both came at once.
        nonlocal is_ending
        if not is_ending:
            is_ending = True
            raise SystemExit(code)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _run(config: Config) -> int:
    clock, interval = SystemClock(), config.poll.poll_interval_in_secs
    host, manager = parts.host(config), ServiceManager(os.environ)
    senders = parts.senders(config, os.environ)
    # before the lanes start: it forks
    readers = collectors.build(interval=interval, clock=clock, slurm=parts.slurm(config, at_once=False))
    folder, boot_id = state_folder(os.environ, host.hostname), host.boot_id or ""
    counter = SnapshotCounter(folder, boot_id=boot_id, now=clock.now())
    spool = parts.spool(config, host, counter, folder)
    lanes: list[Lane | Delivery] = []
    delivery: Delivery | None = None
    for sender, min_interval in senders:
        if isinstance(sender, HttpSender) and boot_id:
            delivery = Delivery(sender, spool, interval=interval, min_interval=min_interval, clock=clock)
            lanes.append(delivery)
        else:
            lanes.append(Lane(sender, interval=interval, min_interval=min_interval, clock=clock))
    # the last ones: the first lane says what was told of what happened
    lanes += [Lane(listener, interval=interval, clock=clock) for listener in parts.listeners(config, clock)]
    mole = Mole(
        host=host,
        collectors=readers,
        lanes=lanes,
        interval=interval,
        clock=clock,
        count=counter.next if delivery is None else partial(_count, delivery, counter),
        pace=(lambda: 0.0) if delivery is None else partial(getattr, delivery, "pace_seconds"),
        labels=config.labels,
        past=HostPast(folder, boot_id=boot_id) if boot_id else None,
        alive=manager.alive,
        alive_seconds=manager.alive_seconds,
    )
    log.info("mole %s of %s: every %g s by %s", __version__, host.hostname, interval, config.source)
    for lane in lanes:
        lane.start()
    manager.ready()
    try:
        mole.run()
    finally:
        manager.stopping()
        if not SHUTTING_DOWN.exists():
            mole.say_goodbye(counter.next, GOODBYE_SECONDS)
        spool.close()
    return DONE


def _count(delivery: Delivery, counter: SnapshotCounter) -> int | None:
    """Return the number of the next snapshot, None where it is not sent: numbers without a gap show what is lost."""
    return counter.next() if delivery.wants() else None


def _doctor(path: Path | None) -> int:
    from cluster_dash_mole import doctor  # a mole that runs has no use for it: memory

    senders: list[Sender] = []
    config: Config | ConfigError
    try:
        config = load(path, os.environ)
        senders = [sender for sender, _ in parts.senders(config, os.environ)]
    except ConfigError as error:
        config = error
    findings = []
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a locale that lacks ✔
    for finding in doctor.examine(
        host=read_host() if isinstance(config, ConfigError) else parts.host(config),
        config=config,
        senders=senders,
        kinds=collectors.build(
            interval=parts.ONE_SHOT_INTERVAL,
            clock=SystemClock(),
            slurm=None if isinstance(config, ConfigError) else parts.slurm(config, at_once=True),
        ),
        environ=os.environ,
    ):
        findings.append(finding)
        sys.stdout.write(f"{finding}\n")
        sys.stdout.flush()
    return doctor.exit_code(findings)


def _once(config: Config) -> int:
    senders = parts.senders(config, os.environ)
    if not senders:
        raise ConfigError(f"{config.source}: no sender is in use, so --once has nowhere to send to")
    snapshot = parts.one_shot(config).snapshot()
    code = DONE
    for sender, _ in senders:
        try:
            sender.send(snapshot)
        except SendError as error:
            log.error("%s: %s", sender.name, error)
            code = UNREACHABLE if error.row in (Row.TROUBLE, Row.NOT_NOW) else REFUSED
        else:
            log.info("%s: the snapshot was taken", sender.name)
    return code


def _show(config: Config) -> int:
    document = parts.one_shot(config).snapshot().document()
    if config.json_sender.auth_code is not None:
        document["auth_code"] = "***"
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    return DONE
