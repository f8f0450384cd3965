from pathlib import Path

from cluster_dash_mole.collectors.network import NetworkCollector, parse_net_dev

DEV = """Inter-|   Receive                    |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo:     100 1 0 0 0 0 0 0     100 1 0 0 0 0 0 0
  eth0:12345678 9 0 0 0 0 0 0      55 9 0 0 0 0 0 0
 bond0:12345678 9 0 0 0 0 0 0      55 9 0 0 0 0 0 0
eth0:1:       7 9 0 0 0 0 0 0       8 9 0 0 0 0 0 0
"""


def root(tmp_path: Path, *devices: str) -> NetworkCollector:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/dev").write_text(DEV)
    for device in devices:
        (tmp_path / "class/net" / device / "device").mkdir(parents=True)
    return NetworkCollector(str(tmp_path), str(tmp_path))


def test_counters_stand_by_interface_however_the_columns_run_together() -> None:
    assert parse_net_dev(DEV)["eth0"] == {"rx_bytes": 12345678, "tx_bytes": 55}
    assert parse_net_dev(DEV)["eth0:1"] == {"rx_bytes": 7, "tx_bytes": 8}


def test_a_bond_is_not_counted_beside_its_members(tmp_path: Path) -> None:
    part = root(tmp_path, "eth0").collect().parts["network"]
    assert part == {
        "rx_bytes": 12345678,
        "tx_bytes": 55,
        "interfaces": {"eth0": {"rx_bytes": 12345678, "tx_bytes": 55}},
    }


def test_where_no_interface_is_a_device_all_but_the_loopback_count(tmp_path: Path) -> None:
    part = root(tmp_path).collect().parts["network"]
    assert isinstance(part, dict)
    assert list(part["interfaces"]) == ["eth0", "bond0", "eth0:1"]
