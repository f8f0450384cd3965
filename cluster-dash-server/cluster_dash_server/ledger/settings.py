"""The section `[ledger]`: what keeps alerts, tokens and who had which GPU."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster_dash_server.ledger.shared import Shared


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSettings:
    """The section `[ledger]`."""

    kind: str = field(
        default="sqlite",
        metadata={
            "help": "what keeps alerts, events, tokens and who had which GPU: sqlite, files in the data folder; "
            "postgresql, a database (an extra) that several replicas share",
            "choices": ("sqlite", "postgresql"),
        },
    )
    url: str | None = field(
        default=None,
        repr=False,
        metadata={
            "help": "postgresql: its address, as postgresql://dash@db.lab:5432/dash?sslmode=verify-full",
            "secret": True,
        },
    )
    url_file: str | None = field(
        default=None, metadata={"help": "postgresql: a file that holds the url, instead", "of": "url"}
    )


def shared_of(settings: LedgerSettings) -> "Shared | None":
    """Name the database that replicas share; None: there is one server, and files in its data folder."""
    if settings.kind != "postgresql" or settings.url is None:
        return None
    from cluster_dash_server.ledger.shared import Shared  # what it needs is an extra

    return Shared.at(settings.url)
