"""What `cluster-dash-server` does besides serving: a file for each command; `cli` describes and calls them."""


class CommandError(Exception):
    """What was asked for was not done; the text says why."""


class UsageError(CommandError):
    """The command line does not fit together, or names something that cannot be read; the text says how."""
