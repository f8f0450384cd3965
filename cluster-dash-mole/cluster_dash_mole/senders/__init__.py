"""Where snapshots can go: one file or folder a kind, one name of the table each."""

from cluster_dash_mole.senders.google_sheets import GoogleSheetsSender
from cluster_dash_mole.senders.http import HttpSender
from cluster_dash_mole.senders.stdout import StdoutSender

__all__ = ["GoogleSheetsSender", "HttpSender", "StdoutSender"]
