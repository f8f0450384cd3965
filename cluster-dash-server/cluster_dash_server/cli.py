"""The command `cluster-dash-server`.

A command imports the application, which needs Flask, when it runs: `--help` and a wrong word are answered at once.
"""

import argparse
import dataclasses
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster_dash_server import __version__, alert_commands, control, digest_command, logs
from cluster_dash_server.access.users import UsersError
from cluster_dash_server.commands import forget as forget_command
from cluster_dash_server.commands import move as move_command
from cluster_dash_server.commands import notify_test as notify_command
from cluster_dash_server.commands import past as past_command
from cluster_dash_server.commands import token as token_command
from cluster_dash_server.commands import user as user_command
from cluster_dash_server.hostlist import HostlistError
from cluster_dash_server.settings import SERVERS, ConfigError, Settings

log = logging.getLogger(__name__)

EXIT_DONE, EXIT_PROBLEM, EXIT_USAGE, EXIT_NO_SERVER, EXIT_REFUSED, EXIT_CONFIG = 0, 1, 2, 69, 77, 78

DATA_HELP = "folder for what the server keeps; the socket for commands is in it"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    logs.setup(_log_options(options))
    try:
        code: int = options.run(options)
        return code
    except ConfigError as error:
        log.error("%s", error)
        return EXIT_CONFIG


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("-v", "--verbose", action="store_true", help="log more")
    shared.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="one line of text or JSON an event"
    )
    parser = argparse.ArgumentParser(
        prog="cluster-dash-server", description="The server of cluster-dash: takes snapshots, shows the cluster."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    configured = argparse.ArgumentParser(add_help=False, parents=[shared])
    configured.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="FILE",
        help="settings (else $CLUSTER_DASH_CONFIG, ./server.toml, /etc/cluster-dash/server.toml)",
    )
    for name, run, text in (
        ("check-config", check, "say which settings are in force, and where each comes from"),
        ("doctor", examine, "look at everything the server needs, and say what is wrong and how to mend it"),
    ):
        command = commands.add_parser(name, parents=[configured], help=text, description=text.capitalize() + ".")
        command.set_defaults(run=run)
    command = commands.add_parser("serve", parents=[configured], help="run the server", description="Run the server.")
    command.add_argument("--host", help="address to listen on (default 127.0.0.1; 0.0.0.0: all)")
    command.add_argument("--port", type=int, help="port to listen on (default 8080; 0: any free one)")
    command.add_argument("--server", choices=SERVERS, help="what serves (default waitress)")
    command.set_defaults(run=serve)
    command.add_argument("--data", metavar="DIR", help=DATA_HELP)
    command = commands.add_parser(
        "forget",
        parents=[configured],
        help="forget hosts, a missing GPU, or a user",
        description="Forget hosts, a missing GPU of theirs, or a user: by the running server, else in its data folder. "
        "A host that still posts comes back with its next snapshot, and so does a user who still has processes.",
    )
    forget_command.add_arguments(command)
    command.add_argument("--data", metavar="DIR", help=DATA_HELP)
    command.set_defaults(run=forget)
    kept = argparse.ArgumentParser(add_help=False, parents=[configured])
    kept.add_argument("--data", metavar="DIR", help=DATA_HELP)
    command = commands.add_parser(
        "token",
        help="make, list, rotate and revoke tokens: secrets of one host each",
        description="Make, list, rotate and revoke tokens, by the running server, else in its data folder.",
    )
    token_command.add_arguments(command, [kept])
    command.set_defaults(run=token)
    past_command.add_commands(commands, [kept])
    for name in ("export", "backup", "restore", "prune"):
        commands.choices[name].set_defaults(run=past)
    command = commands.add_parser(
        "move",
        parents=[kept],
        help="take the site from files to engines, or back; no server must run",
        description="Take all that is kept from the files of one server to the engines of replicas, or back; no server "
        "must run. What was moved stays where it was, and what is stopped goes on with the same command.",
    )
    move_command.add_arguments(command)
    command.set_defaults(run=move)
    alert_commands.add_commands(commands, [kept])
    for name in ("maintenance", "reload"):
        commands.choices[name].set_defaults(run=tell_alerts)
    digest_command.add_command(commands, [kept]).set_defaults(run=digest)
    command = commands.add_parser(
        "notify-test",
        parents=[kept],
        help="send a message to receivers of alerts, by the way of a real one",
        description="Send a message to receivers of alerts, by the way of a real one: through the running server.",
    )
    notify_command.add_arguments(command)
    command.set_defaults(run=notify_test)
    command = commands.add_parser(
        "user",
        help="add and remove people who sign in by a password",
        description='Add and remove people of the users file: [viewers] mode = "basic".',
    )
    user_command.add_arguments(command, [configured])
    command.set_defaults(run=user)
    return parser


def serve(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: a setting that cannot be used, or an address that cannot be listened on.
    """
    from cluster_dash_server import notify, serving

    settings = _load_settings(options)
    names = ("host", "port", "data", "server")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    settings = dataclasses.replace(settings, server=dataclasses.replace(settings.server, **given))
    if not 0 <= settings.server.port <= 65535:
        raise ConfigError(f"--port: got {settings.server.port}, expected a whole number >= 0 <= 65535")
    serving.allow_open_files(settings.limits.max_hosts)
    try:
        serving.SERVERS[settings.server.server](settings, _log_options(options))
    finally:
        notify.tell("STOPPING=1")
    log.info("ended")
    return EXIT_DONE


def check(options: argparse.Namespace) -> int:
    """Print the settings in force.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    from cluster_dash_server import app
    from cluster_dash_server.commands import check_config

    sys.stdout.write(check_config.report(app.read_settings(options.config)))
    return EXIT_DONE


def examine(options: argparse.Namespace) -> int:
    """Print what the doctor finds; the exit code is that of the worst finding."""
    from cluster_dash_server import app
    from cluster_dash_server.commands import doctor

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without ✔ still gets the words
    try:
        reading = app.read_settings(options.config)
    except ConfigError as error:
        sys.stdout.write(f"{doctor.unusable_settings(str(error))}\n")
        return EXIT_CONFIG
    code = EXIT_DONE
    for finding in doctor.examine(reading):
        sys.stdout.write(f"{finding}\n")
        code = EXIT_PROBLEM if finding.is_problem else code
    return code


def forget(options: argparse.Namespace) -> int:
    """Forget hosts or a user, and print which.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    misuse = forget_command.misuse(options)
    if misuse is not None:
        log.error("%s", misuse)
        return EXIT_USAGE
    settings = _load_settings(options)
    try:
        forget_command.run(options, settings, past_command.folder_of(options, settings))
    except control.ControlError as error:
        log.error("%s", error)
        return EXIT_REFUSED if error.refused else EXIT_NO_SERVER
    except HostlistError as error:
        log.error("%s", error)
        return EXIT_USAGE
    except forget_command.ForgetError as error:
        log.error("%s", error)
        return EXIT_PROBLEM
    return EXIT_DONE


def token(options: argparse.Namespace) -> int:
    """Make, list, rotate or revoke tokens.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    wish = token_command.wish_of(options)
    if "error" in wish:
        log.error("%s", wish["error"])
        return EXIT_USAGE
    settings = _load_settings(options)
    try:
        answer = token_command.grant(past_command.folder_of(options, settings), wish, settings.ledger)
    except control.ControlError as error:
        log.error("%s", error)
        return EXIT_REFUSED if error.refused else EXIT_NO_SERVER
    if not answer["success"]:
        log.error("%s", answer["msg"])
        return EXIT_PROBLEM
    token_command.show(answer, wish, options)
    return EXIT_DONE


def tell_alerts(options: argparse.Namespace) -> int:
    """Note maintenance of hosts, or have the rules of alerts taken up anew.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    settings = _load_settings(options)
    folder = past_command.folder_of(options, settings)
    try:
        if options.command == "reload":
            alert_commands.reload(folder)
        else:
            alert_commands.maintain(alert_commands.wish_of(options), settings, folder)
    except control.ControlError as error:
        log.error("%s", error)
        return EXIT_REFUSED if error.refused else EXIT_NO_SERVER
    except alert_commands.AlertCommandError as error:
        log.error("%s", error)
        return EXIT_PROBLEM
    return EXIT_DONE


def notify_test(options: argparse.Namespace) -> int:
    """Have the running server send a test message, and print what became of it.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    folder = past_command.folder_of(options, _load_settings(options))
    try:
        answer = control.ask(folder, {"notify-test": {"receiver": options.receiver}})
    except control.ControlError as error:
        log.error("%s", error)
        return EXIT_REFUSED if error.refused else EXIT_NO_SERVER
    if not answer["success"]:
        log.error("%s", answer["msg"])
        return EXIT_PROBLEM
    return EXIT_DONE if notify_command.show(answer) else EXIT_PROBLEM


def past(options: argparse.Namespace) -> int:
    """Export, back up, restore or prune what a server keeps.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    settings = _load_settings(options)
    folder = past_command.folder_of(options, settings)
    try:
        match options.command:
            case "export":
                past_command.export(options, settings, folder)
            case "backup":
                past_command.backup(options, settings, folder)
            case "restore":
                past_command.restore(options, folder)
            case _:
                past_command.prune(settings, folder)
    except past_command.PastError as error:
        log.error("%s", error)
        return EXIT_PROBLEM
    return EXIT_DONE


def move(options: argparse.Namespace) -> int:
    """Take the site from files to engines, or back.

    Raises:
        ConfigError: a setting that cannot be used, here or there.
    """
    from cluster_dash_server import app

    settings, target = _load_settings(options), app.load_settings(options.to)
    try:
        move_command.run(options, settings, target, past_command.folder_of(options, settings))
    except move_command.MoveError as error:
        log.error("%s", error)
        return EXIT_PROBLEM
    return EXIT_DONE


def digest(options: argparse.Namespace) -> int:
    """Print what happened last night.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    folder = past_command.folder_of(options, _load_settings(options))
    try:
        digest_command.run(options, folder)
    except control.ControlError as error:
        log.error("%s", error)
        return EXIT_REFUSED if error.refused else EXIT_NO_SERVER
    except digest_command.DigestError as error:
        log.error("%s", error)
        return EXIT_USAGE
    return EXIT_DONE


def user(options: argparse.Namespace) -> int:
    """Add, remove or list people of the users file.

    Raises:
        ConfigError: a setting that cannot be used, or no file is named.
    """
    file = options.file or _load_settings(options).viewers.users_file
    if file is None:
        raise ConfigError("no users file: name it by --file, or as [viewers] users_file")
    try:
        user_command.run(Path(file), options)
    except UsersError as error:
        log.error("%s", error)
        return EXIT_PROBLEM
    return EXIT_DONE


def _load_settings(options: argparse.Namespace) -> Settings:
    from cluster_dash_server import app

    return app.load_settings(options.config)


def _log_options(options: argparse.Namespace) -> logs.LogOptions:
    return logs.LogOptions(log_format=options.log_format, verbose=options.verbose)
