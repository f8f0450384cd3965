"""The network: what went through each interface since boot."""

from pathlib import Path

from cluster_dash_mole.mole import Reading
from cluster_dash_mole.snapshot import clean


class NetworkCollector:
    """Reads the part `network`: bytes in and out of each interface since boot, and their sums.

    The sums are over real devices, as what passes a bridge or a bond is counted at its members too; a container has
    none, there all but the loopback count.
    """

    name = "network"

    def __init__(self, proc: str = "/proc", sys: str = "/sys") -> None:
        self._dev = Path(proc, "net/dev")
        self._class = Path(sys, "class/net")

    def collect(self) -> Reading:
        """Read /proc/net/dev."""
        every = parse_net_dev(self._dev.read_text())
        every.pop("lo", None)
        devices = {name: counts for name, counts in every.items() if (self._class / name / "device").exists()}
        shown = devices or every
        sums = {key: sum(counts[key] for counts in shown.values()) for key in ("rx_bytes", "tx_bytes")}
        return Reading(parts={"network": {**sums, "interfaces": shown}}) if shown else Reading()


def parse_net_dev(text: str) -> dict[str, dict[str, int]]:
    """Return {interface: {rx_bytes, tx_bytes}} from /proc/net/dev."""
    interfaces = {}
    for line in text.splitlines()[2:]:
        name, _, counts = line.rpartition(":")
        columns = counts.split()
        interfaces[clean(name.strip(), 256)] = {"rx_bytes": int(columns[0]), "tx_bytes": int(columns[8])}
    return interfaces
