import os
from pathlib import Path

import pytest

from cluster_dash_mole.host import (
    HostPast,
    SnapshotCounter,
    machine_id_of,
    parse_boottime,
    parse_os_release,
    read_host,
    state_folder,
)

NOW = 1_790_000_000.0
FRESH = 1_790_000_000_000


def counter(folder: Path, boot_id: str = "boot-1", now: float = NOW) -> SnapshotCounter:
    return SnapshotCounter(folder, boot_id=boot_id, now=now)


def test_this_machine_knows_who_it_is() -> None:
    host = read_host()
    assert host.hostname == os.uname().nodename
    assert host.kernel == os.uname().release
    assert host.boottime
    assert host.boottime > 1e9


def test_what_cannot_be_read_of_a_host_is_none_and_absent(tmp_path: Path) -> None:
    host = read_host(hostname="gpu01", proc=str(tmp_path), etc=str(tmp_path))
    assert (host.boot_id, host.machine_id, host.boottime, host.os, host.kernel) == (None,) * 5
    assert set(host.general(NOW, {})) == {"hostname", "system_time", "mole_version"}


def test_a_pod_says_that_it_comes_and_goes_and_others_do_not(tmp_path: Path) -> None:
    proc = etc = str(tmp_path)
    assert read_host(hostname="pod-1", ephemeral=True, proc=proc, etc=etc).general(NOW, {})["ephemeral"] is True
    assert "ephemeral" not in read_host(hostname="gpu01", proc=proc, etc=etc).general(NOW, {})


def test_the_machine_id_is_not_the_files_own() -> None:
    assert machine_id_of("0123456789abcdef") == machine_id_of("0123456789abcdef")
    assert "0123456789abcdef" not in machine_id_of("0123456789abcdef")
    assert machine_id_of("0123456789abcdef") != machine_id_of("0123456789abcdee")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('PRETTY_NAME="Rocky Linux 9.4"\n', "Rocky Linux 9.4"),
        ("PRETTY_NAME=Arch\n", "Arch"),
        ("ID=x\n", None),
        ("", None),
    ],
)
def test_the_systems_name_is_read_quoted_or_not(text: str, name: str | None) -> None:
    assert parse_os_release(text) == name


def test_the_boot_time_is_the_line_btime() -> None:
    assert parse_boottime("cpu 1 2\nbtime 1789000000\nprocesses 1\n") == 1_789_000_000
    assert parse_boottime("") is None


def test_the_state_folder_is_systemds_else_one_a_host_below_the_users() -> None:
    assert state_folder({"STATE_DIRECTORY": "/var/lib/m:/x", "XDG_STATE_HOME": "/y"}, "gpu01") == Path("/var/lib/m")
    assert state_folder({"XDG_STATE_HOME": "/y"}, "gpu01") == Path("/y/cluster-dash-mole/gpu01")
    assert state_folder({"HOME": "/home/ada"}, "gpu01") == Path("/home/ada/.local/state/cluster-dash-mole/gpu01")


def test_a_counter_without_a_past_begins_at_the_time_in_milliseconds(tmp_path: Path) -> None:
    first = counter(tmp_path / "new")
    assert [first.next(), first.next()] == [FRESH, FRESH + 1]
    first.close()


def test_a_counter_goes_on_after_a_restart(tmp_path: Path) -> None:
    first = counter(tmp_path)
    last = [first.next() for _ in range(3)][-1]
    first.close()
    second = counter(tmp_path, now=NOW + 60)
    assert second.next() == last + 1
    second.close()


@pytest.mark.parametrize(
    "damage", [b"", b"cluster-dash-mole 1\nboot-1 17", b"\0" * 60, b"cluster-dash-mole 2\nboot-1 5\n"]
)
def test_a_damaged_or_foreign_state_counts_as_no_past(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "snapshots").write_bytes(damage)
    fresh = counter(tmp_path)
    assert fresh.next() == FRESH
    fresh.close()
    again = counter(tmp_path, now=NOW + 60)
    assert again.next() == FRESH + 1
    again.close()


def test_under_another_boot_counting_begins_anew(tmp_path: Path) -> None:
    first = counter(tmp_path)
    first.next()
    first.close()
    second = counter(tmp_path, boot_id="boot-2", now=NOW + 60)
    assert second.next() == FRESH + 60_000
    second.close()


def test_two_moles_on_one_folder_never_give_the_same_number(tmp_path: Path) -> None:
    first = counter(tmp_path)
    first.next()
    second = counter(tmp_path, now=NOW + 1)
    assert not {first.next() for _ in range(100)} & {second.next() for _ in range(100)}
    first.close()
    second.close()


def test_a_folder_that_cannot_be_made_does_not_stop_the_counting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert counter(tmp_path / "file" / "below").next() == FRESH


def past(folder: Path, driver: str | None = "550", boot_id: str = "boot-1") -> list[tuple[str, float, str]]:
    """Return the events of a mole that starts now."""
    general = {"boottime": 5.0, **({"driver_version": driver} if driver else {})}
    return [(event.kind, event.at, event.text) for event in HostPast(folder, boot_id=boot_id).changes(general, NOW)]


def test_a_first_start_and_one_with_nothing_new_make_no_event(tmp_path: Path) -> None:
    for _ in range(3):
        assert past(tmp_path) == []


def test_another_boot_is_a_reboot_at_its_time_and_another_driver_is_told(tmp_path: Path) -> None:
    past(tmp_path)
    rebooted = ("rebooted", 5.0, "the host was started anew")
    assert past(tmp_path, "560", "boot-2") == [rebooted, ("driver_changed", NOW, "driver 560, before 550")]
    assert past(tmp_path, "560", "boot-2") == []


def test_a_driver_that_is_away_for_a_while_has_not_changed(tmp_path: Path) -> None:
    past(tmp_path)
    assert past(tmp_path, None) == []
    assert past(tmp_path) == []
    subject = HostPast(tmp_path, boot_id="boot-1")
    assert [event.kind for event in subject.changes({"driver_version": "560"}, NOW)] == ["driver_changed"]
    assert subject.changes({"driver_version": "560"}, NOW) == []


@pytest.mark.parametrize("damage", [b"", b"\xff\x00", b"cluster-dash-mole 9\nboot_id old\n", b"boot_id old\n"])
def test_a_damaged_or_foreign_past_makes_no_event(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "host").write_bytes(damage)
    assert past(tmp_path) == []
    assert [kind for kind, _, _ in past(tmp_path, boot_id="boot-2")] == ["rebooted"]


def test_a_past_that_cannot_be_kept_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert past(tmp_path / "file") == []
