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

from cluster_dash_server import __version__, control, logs, site
from cluster_dash_server.access.users import UsersError
from cluster_dash_server.commands import CommandError, Parser, UsageError, whole
from cluster_dash_server.commands import alerts as alert_commands
from cluster_dash_server.commands import digest as digest_command
from cluster_dash_server.commands import forget as forget_command
from cluster_dash_server.commands import move as move_command
from cluster_dash_server.commands import notify_test as notify_command
from cluster_dash_server.commands import past as past_command
from cluster_dash_server.commands import summary as summary_command
from cluster_dash_server.commands import token as token_command
from cluster_dash_server.commands import user as user_command
from cluster_dash_server.lasting import made_to_last
from cluster_dash_server.settings import SERVERS, ConfigError, Reading, Settings, read_server

log = logging.getLogger(__name__)

EXIT_DONE, EXIT_PROBLEM, EXIT_USAGE, EXIT_NO_SERVER, EXIT_REFUSED, EXIT_CONFIG = 0, 1, 2, 69, 77, 78

DATA_HELP = "folder for what the server keeps; the socket for commands is in it"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    options = argparse.Namespace(verbose=False, log_format="text")
    try:
        _parser().parse_args(words, options)
    except SystemExit as end:
        # a unit starts what ends with 2 again and again; what stands before the command may be the wrong part
        if end.code == EXIT_USAGE and "serve" in words and options.command in (None, "serve"):
            return EXIT_CONFIG
        raise
    logs.setup(_log_options(options))
    try:
        code: int = options.run(options)
        return code
    except ConfigError as error:
        log.error("%s", error)
        return EXIT_CONFIG
    except control.ControlError as error:
        log.error("%s", error)
        return EXIT_REFUSED if error.refused else EXIT_NO_SERVER
    except UsageError as error:
        log.error("%s", error)
        return EXIT_USAGE
    except (CommandError, move_command.MoveError, UsersError) as error:
        log.error("%s", error)
        return EXIT_PROBLEM


def _parser() -> argparse.ArgumentParser:
    # they may stand before the command and behind it, so what does not stand there sets nothing
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared.add_argument("-v", "--verbose", action="store_true", help="log more")
    shared.add_argument("--log-format", choices=("text", "json"), help="one line of text or JSON an event")
    parser: argparse.ArgumentParser = Parser(
        prog="cluster-dash-server",
        description="The server of cluster-dash: takes snapshots, shows the cluster.",
        parents=[shared],
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
    kept = argparse.ArgumentParser(add_help=False, parents=[configured])
    kept.add_argument("--data", metavar="DIR", help=DATA_HELP)
    for name, run, text in (
        ("check-config", check, "say which settings are in force, and where each comes from"),
        ("doctor", examine, "look at everything the server needs, and say what is wrong and how to mend it"),
        ("summary", summary, "say in a sentence what is free and what is wrong, by the running server"),
    ):
        command = commands.add_parser(name, parents=[kept], help=text, description=text.capitalize() + ".")
        command.set_defaults(run=run)
    command = commands.add_parser("serve", parents=[kept], help="run the server", description="Run the server.")
    command.add_argument("--host", help="address to listen on (default 127.0.0.1; 0.0.0.0: all)")
    command.add_argument(
        "--port", type=whole(0, 65535), metavar="PORT", help="port to listen on (default 8080; 0: any free one)"
    )
    command.add_argument("--server", choices=SERVERS, help="what serves (default waitress)")
    command.set_defaults(run=serve)
    command = commands.add_parser(
        "forget",
        parents=[kept],
        help="forget hosts, a missing GPU, or a user",
        description="Forget hosts, a missing GPU of theirs, or a user: by the running server, else in its data folder. "
        "A host that still posts comes back with its next snapshot, and so does a user who still has processes.",
    )
    forget_command.add_arguments(command)
    command.set_defaults(run=forget)
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
    commands.choices["maintenance"].set_defaults(run=maintenance)
    commands.choices["reload"].set_defaults(run=reload)
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
    with made_to_last():
        from cluster_dash_server import notify, serving

    settings = _load_settings(options)
    names = ("host", "port", "data", "server")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    settings = dataclasses.replace(settings, server=dataclasses.replace(settings.server, **given))
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
        ConfigError: a setting that cannot be used, or a database.
    """
    from cluster_dash_server.commands import check_config

    reading = _at_data(site.read_settings(options.config), options.data)
    sys.stdout.write(check_config.report(reading))
    fault = check_config.fault_of_database(reading.settings)
    if fault is not None:
        raise ConfigError(f"ledger.url: {fault}")
    return EXIT_DONE


def examine(options: argparse.Namespace) -> int:
    """Print what the doctor finds; the exit code is that of the worst finding."""
    from cluster_dash_server.commands import doctor

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without ✔ still gets the words
    try:
        reading = _at_data(site.read_settings(options.config), options.data)
    except ConfigError as error:
        sys.stdout.write(f"{doctor.unusable_settings(str(error))}\n")
        return EXIT_CONFIG
    code = EXIT_DONE
    for finding in doctor.examine(reading):
        sys.stdout.write(f"{finding}\n")
        code = EXIT_PROBLEM if finding.is_problem else code
    return code


def forget(options: argparse.Namespace) -> int:
    """Forget hosts or a user, and print which."""
    settings = _load_settings(options)
    forget_command.run(options, settings, past_command.folder_of(options, settings.server))
    return EXIT_DONE


def token(options: argparse.Namespace) -> int:
    """Make, list, rotate or revoke tokens."""
    settings = _load_settings(options)
    token_command.run(options, settings, past_command.folder_of(options, settings.server))
    return EXIT_DONE


def maintenance(options: argparse.Namespace) -> int:
    """Note that somebody works on hosts, or say on which."""
    wish = alert_commands.wish_of(options)
    settings = _load_settings(options)
    alert_commands.maintain(wish, settings, past_command.folder_of(options, settings.server))
    return EXIT_DONE


def reload(options: argparse.Namespace) -> int:
    """Have the rules of alerts taken up anew."""
    alert_commands.reload(past_command.folder_of(options, read_server(options.config)))
    return EXIT_DONE


def notify_test(options: argparse.Namespace) -> int:
    """Have the running server send a test message, and print what became of it."""
    is_with_all = notify_command.run(options, past_command.folder_of(options, read_server(options.config)))
    return EXIT_DONE if is_with_all else EXIT_PROBLEM


def past(options: argparse.Namespace) -> int:
    """Export, back up, restore or prune what a server keeps."""
    settings = _load_settings(options)
    folder = past_command.folder_of(options, settings.server)
    match options.command:
        case "export":
            past_command.export(options, settings, folder)
        case "backup":
            past_command.backup(options, settings, folder)
        case "restore":
            past_command.restore(options, folder)
        case _:
            past_command.prune(settings, folder)
    return EXIT_DONE


def move(options: argparse.Namespace) -> int:
    """Take the site from files to engines, or back."""
    settings, target = _load_settings(options), site.load_settings(options.to)
    move_command.run(options, settings, target, past_command.folder_of(options, settings.server))
    return EXIT_DONE


def summary(options: argparse.Namespace) -> int:
    """Print what is free and what is wrong."""
    summary_command.run(past_command.folder_of(options, read_server(options.config)))
    return EXIT_DONE


def digest(options: argparse.Namespace) -> int:
    """Print what happened last night."""
    digest_command.run(options, past_command.folder_of(options, read_server(options.config)))
    return EXIT_DONE


def user(options: argparse.Namespace) -> int:
    """Add, remove or list people of the users file.

    Raises:
        ConfigError: no file is named.
    """
    file = options.file or _load_settings(options).viewers.users_file
    if file is None:
        raise ConfigError("no users file: name it by --file, or as [viewers] users_file")
    user_command.run(Path(file), options)
    return EXIT_DONE


def _at_data(reading: Reading, data: str | None) -> Reading:
    """Return the settings with the data folder that the command line names, where it names one."""
    if data is None:
        return reading
    server = dataclasses.replace(reading.settings.server, data=data)
    return dataclasses.replace(
        reading,
        settings=dataclasses.replace(reading.settings, server=server),
        origins={**reading.origins, "server.data": "--data"},
    )


def _load_settings(options: argparse.Namespace) -> Settings:
    return site.load_settings(options.config)


def _log_options(options: argparse.Namespace) -> logs.LogOptions:
    return logs.LogOptions(log_format=options.log_format, verbose=options.verbose)
