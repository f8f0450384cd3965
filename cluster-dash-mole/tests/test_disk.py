import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster_dash_mole.collectors.disk import DiskCollector, Mount, Usage, entry, key_of, parse_mounts, real_mounts

NODEV = frozenset({"tmpfs", "overlay", "nfs4", "proc", "autofs"})


def usage(blocks: int = 1000, free: int = 400, available: int = 300) -> Usage:
    return SimpleNamespace(f_frsize=2**20, f_blocks=blocks, f_bfree=free, f_bavail=available)


def mount(device: str, point: str, kind: str = "ext4") -> Mount:
    return Mount(device=device, mount_point=point, kind=kind)


def root(tmp_path: Path, *points: str) -> str:
    (tmp_path / "self").mkdir()
    lines = [f"filer:{point} {point} nfs4 rw 0 0\n" for point in points]
    (tmp_path / "self/mounts").write_text("".join(lines))
    (tmp_path / "filesystems").write_text("nodev\tnfs4\n")
    return str(tmp_path)


def test_blanks_in_names_are_undone() -> None:
    assert parse_mounts("/dev/sdb1 /data/my\\040files\\134 xfs rw 0 0\n") == [
        mount("/dev/sdb1", "/data/my files\\", "xfs")
    ]


def test_only_file_systems_that_hold_files_are_shown_each_device_once() -> None:
    shown = real_mounts(
        [
            mount("proc", "/proc", "proc"),
            mount("tmpfs", "/run", "tmpfs"),
            mount("/dev/sda1", "/mnt/bind/long"),
            mount("/dev/sda1", "/"),
            mount("/dev/loop1", "/snap/x", "squashfs"),
            mount("filer:/home", "/home", "nfs4"),
            mount("overlay", "/var/lib/docker/x", "overlay"),
            mount("pool/data", "/data", "zfs"),
        ],
        nodev=NODEV | {"zfs"},
    )
    assert [each.mount_point for each in shown] == ["/", "/home", "/data"]


def test_a_containers_root_is_shown() -> None:
    assert real_mounts([mount("overlay", "/", "overlay")], nodev=NODEV)


def test_what_was_mounted_over_is_hidden() -> None:
    shown = real_mounts([mount("/dev/sda1", "/data"), mount("/dev/sdb1", "/data")], nodev=NODEV)
    assert [each.device for each in shown] == ["/dev/sdb1"]


def test_the_key_is_the_block_device_else_the_mount_point() -> None:
    assert key_of(mount("/dev/sda1", "/")) == "/dev/sda1"
    assert key_of(mount("filer:/home", "/home", "nfs4")) == "/home"


def test_the_percentage_is_that_of_df() -> None:
    assert entry(mount("/dev/sda1", "/"), usage()) == {
        "mount_point": "/",
        "device": "/dev/sda1",
        "total_gb": round(1000 / 1024, 3),
        "used_gb": round(600 / 1024, 3),
        "percent_used": round(100 * 600 / 900, 2),
    }


def test_a_mount_that_hangs_is_left_out_with_the_reason_and_comes_back(tmp_path: Path) -> None:
    answer = threading.Event()
    asked: list[str] = []

    def statvfs(point: str) -> Usage:
        asked.append(point)
        if point == "/b" and not answer.is_set():
            answer.wait(60)
        return usage()

    collector = DiskCollector(root(tmp_path, "/a", "/b", "/c"), statvfs=statvfs, deadline_seconds=1)
    try:
        first = collector.collect()
        assert list(first.parts["disk"]) == ["/a", "/c"]  # type: ignore[call-overload]
        assert (first.ok, first.error) == (False, "/b: no answer")
        for _ in range(5):
            assert collector.collect().error == "/b: no answer"
        assert asked.count("/b") == 1  # known to hang: not asked again
    finally:
        answer.set()
    until = time.monotonic() + 60
    while (healed := collector.collect()).error and time.monotonic() < until:
        time.sleep(0.01)
    assert list(healed.parts["disk"]) == ["/a", "/b", "/c"]  # type: ignore[call-overload]


def test_a_mount_that_fails_costs_itself_only(tmp_path: Path) -> None:
    def statvfs(point: str) -> Usage:
        if point == "/b":
            raise OSError(116, "Stale file handle")
        return usage()

    reading = DiskCollector(root(tmp_path, "/a", "/b"), statvfs=statvfs).collect()
    assert list(reading.parts["disk"]) == ["/a"]  # type: ignore[call-overload]
    assert (reading.ok, reading.error) == (False, "/b: Stale file handle")


@pytest.mark.parametrize("count", [20])
def test_many_hanging_mounts_hang_a_bounded_number_of_threads(tmp_path: Path, count: int) -> None:
    answer = threading.Event()

    def statvfs(point: str) -> Usage:
        answer.wait(60)
        return usage()

    before = threading.active_count()
    collector = DiskCollector(root(tmp_path, *(f"/m{n}" for n in range(count))), statvfs=statvfs, deadline_seconds=0.01)
    try:
        for _ in range(3):
            collector.collect()
        assert threading.active_count() - before <= DiskCollector.MAX_STUCK
    finally:
        answer.set()
