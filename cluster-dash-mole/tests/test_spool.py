import json
import logging
import os
import random
import shutil
import threading
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_dash_mole import spool as spool_module
from cluster_dash_mole.batches import ROWS, Held, Source, apply, difference, rows
from cluster_dash_mole.snapshot import encode
from cluster_dash_mole.spool import FRESH, Spool, SpoolFromTheFuture

SOURCE = Source("gpu01", "6f3d7c1e-0001-4222-8333-123456789abc")
MIB = 2**20


def busy_host(seed: int = 1, gpus: int = 8, processes: int = 32) -> Iterator[Held]:
    """Give the snapshots of a host on which every figure moves all the time, 10 s apart."""
    chance = random.Random(seed)
    seconds = 0
    seq = 1_790_000_000_000
    while True:
        seq, seconds = seq + 1, seconds + 10
        at = round(1.79e9 + seconds + chance.random() / 100, 6)
        entries = {}
        for index in range(gpus):
            users: dict[str, dict[str, object]] = {}
            for number in range(index, processes, gpus):
                users.setdefault(("alice", "bob", "carol")[number % 3], {})[str(40_000 + 37 * number)] = {
                    "mem": 4000.0 + 300 * number + chance.randrange(3) * 2,
                    "time": round(1203.9 + seconds * (1 + number / 10) + chance.random(), 2),
                    "name": "python3",
                    "type": "C",
                    "started_at": 1.789e9 + number,
                    "command": "python3.11",
                    "job_id": str(4711 + number),
                    "user_from": "process",
                    "gpu_util": chance.randrange(101),
                }
            entries[f"{index}_NVIDIA-H100-80GB-HBM3_{index:02x}a1c0"] = {
                "name": "NVIDIA H100 80GB HBM3",
                "uuid": f"GPU-{index:02x}a1c0f3-0f6b-4f0e-9a53-2d1f6c1b7e{index:02x}",
                "index": index,
                "pci_bus_id": f"00000000:{index:02X}:00.0",
                "total_mem": 81559.0,
                "used_mem": 17321.0 + chance.randrange(60),
                "gpu_util": chance.randrange(60, 101),
                "memory_util": chance.randrange(30, 70),
                "temperature_c": chance.randrange(50, 62),
                "memory_temperature_c": chance.randrange(60, 70),
                "power_w": round(chance.uniform(300, 690), 1),
                "power_limit_w": 700.0,
                "energy_j": round(81234.5 + seconds * 500 + chance.uniform(0, 100), 3),
                "sm_clock_mhz": 1980 - 15 * chance.randrange(10),
                "sm_clock_max_mhz": 1980,
                "pcie": {"gen": 5, "tx_kib_s": chance.randrange(400_000), "rx_kib_s": chance.randrange(400_000)},
                "nvlink": {"active": 18, "errors": 0, "tx": 18432 + seconds * 977, "rx": 36864 + seconds * 1013},
                "ecc": {"corrected": 0, "uncorrected": 0, "remapped_rows": 0, "remap_pending": False},
                "throttle_reasons": ["sw_power_cap"] if chance.random() < 0.2 else [],
                "users": users,
            }
        document = {
            "schema_version": 1,
            "hostname": SOURCE.hostname,
            "timestamp": at,
            "boot_id": SOURCE.boot_id,
            "seq": seq,
            "interval_seconds": 10.0,
            "general": {"hostname": SOURCE.hostname, "system_time": at, "driver_version": "550.90.07"},
            "cpu": {
                "cpu_percent": round(chance.uniform(0, 100), 1),
                "load_avgs": [round(chance.uniform(4, 9), 2) for _ in range(3)],
                "num_cpus": 64,
            },
            "memory": {"total_gb": 1007.6, "used_gb": round(chance.uniform(180, 190), 3)},
            "network": {"sent_bytes": 10**12 + seconds * 10**7 + chance.randrange(10**7)},
            "gpu": entries,
            "collectors": {
                name: {"ok": True, "seconds": round(chance.uniform(0.0002, 0.004), 6), "error": None}
                for name in ("cpu", "memory", "disk", "network", "gpu", "send_http")
            },
        }
        yield Held(SOURCE, seq, at, encode(document))


def held(seq: int, boot_id: str = SOURCE.boot_id) -> Held:
    source = Source(SOURCE.hostname, boot_id)
    document = {"hostname": source.hostname, "boot_id": boot_id, "seq": seq, "cpu": {"cpu_percent": seq % 7}}
    return Held(source, seq, 1000.0 + seq, encode(document))


def spool(folder: Path | None, *, most_bytes: int = 64 * MIB, last_seq: int | None = None) -> Spool:
    return Spool(folder, most_bytes=most_bytes, source=SOURCE, last_seq=last_seq)


def full(folder: Path, count: int, first: int = 1) -> Spool:
    subject = spool(folder)
    subject.failed(0.0)
    for seq in range(first, first + count):
        subject.add(held(seq))
    return subject


def numbers(subject: Spool) -> list[int]:
    return [each.seq for each in subject.take(10**6, 1e9)]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text("abc", max_size=2), JSON, max_size=5)


@given(old=OBJECTS, new=OBJECTS)
def test_a_difference_makes_the_new_document_of_the_old(old: dict[str, object], new: dict[str, object]) -> None:
    made = json.loads(json.dumps(old))
    apply(made, json.loads(json.dumps(difference(old, new))))
    # as text: for Python 1, 1.0 and True are equal
    assert json.dumps(made, sort_keys=True) == json.dumps(new, sort_keys=True)


def test_what_is_read_is_what_was_added(tmp_path: Path) -> None:
    subject = spool(tmp_path / "spool")
    subject.failed(0.0)
    added = [each for each, _ in zip(busy_host(), range(100), strict=False)]
    for each in added:
        subject.add(each)
    again = spool(tmp_path / "spool").take(200, 0.0)
    assert [json.loads(each.body) for each in again] == [json.loads(each.body) for each in added]
    assert [each[:3] for each in again] == [each[:3] for each in added]


def test_a_day_at_ten_seconds_of_eight_busy_gpus_takes_at_most_sixteen_mib(tmp_path: Path) -> None:
    subject = spool(tmp_path / "spool")
    subject.failed(0.0)
    count = 4 * ROWS
    for each, _ in zip(busy_host(), range(count), strict=False):
        subject.add(each)
    bytes_each = sum(path.stat().st_size for path in (tmp_path / "spool").iterdir()) / count
    assert bytes_each * 8640 <= 16 * MIB
    assert bytes_each * 17280 <= 64 * MIB, "24 h at 5 s"
    assert bytes_each * 7 * 8640 <= 64 * MIB, "a week at 10 s"


def test_sixty_four_gpus_fit_for_a_day_at_ten_seconds_too(tmp_path: Path) -> None:
    subject = spool(tmp_path / "spool")
    subject.failed(0.0)
    for each, _ in zip(busy_host(gpus=64, processes=256), range(ROWS), strict=False):
        subject.add(each)
    bytes_each = sum(path.stat().st_size for path in (tmp_path / "spool").iterdir()) / ROWS
    assert bytes_each * 8640 <= 64 * MIB


def test_until_a_failure_nothing_is_written(tmp_path: Path) -> None:
    subject = spool(tmp_path / "spool")
    for seq in range(1, FRESH + 1):
        subject.add(held(seq))
    assert not (tmp_path / "spool").exists()
    subject.add(held(FRESH + 1))
    assert (tmp_path / "spool").exists(), "memory is not for a whole outage"


def test_after_a_failure_a_snapshot_is_on_disk_when_it_is_held(tmp_path: Path) -> None:
    subject = spool(tmp_path / "spool")
    subject.add(held(1))
    subject.failed(1.0)
    for seq in range(2, 100):
        subject.add(held(seq))
        assert numbers(spool(tmp_path / "spool"))[-1] == seq  # as after kill -9


def test_only_its_owner_can_read_the_folder(tmp_path: Path) -> None:
    full(tmp_path / "spool", 2)
    assert (tmp_path / "spool").stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "spool").iterdir())


def test_what_is_durable_goes_and_does_not_come_back_with_a_start(tmp_path: Path) -> None:
    subject = full(tmp_path / "spool", 3 * ROWS)
    subject.durable(SOURCE, ROWS + 5)
    rest = list(range(ROWS + 6, 3 * ROWS + 1))
    assert numbers(subject) == rest
    assert numbers(spool(tmp_path / "spool", last_seq=3 * ROWS)) == rest
    assert (subject.oldest_seq(SOURCE), subject.holding().waiting) == (ROWS + 6, len(rest))
    subject.durable(SOURCE, 3 * ROWS)
    assert list((tmp_path / "spool").iterdir()) == []


def test_one_boots_numbers_say_nothing_of_another_boot(tmp_path: Path) -> None:
    subject = full(tmp_path / "spool", 3)
    subject.add(held(1, "later"))
    subject.durable(Source(SOURCE.hostname, "later"), 100)
    assert numbers(subject) == [1, 2, 3]


def test_beyond_its_bound_the_oldest_is_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    subject = spool(tmp_path / "spool", most_bytes=8000)
    subject.failed(0.0)
    for seq in range(1, 1001):
        subject.add(held(seq))
    kept = numbers(subject)
    assert kept == list(range(1001 - len(kept), 1001))
    assert subject.dropped == 1000 - len(kept) > 0
    assert sum(path.stat().st_size for path in (tmp_path / "spool").iterdir()) <= 8000 + ROWS * 200
    assert len([record for record in caplog.records if "dropped" in record.getMessage()]) == 1


def test_a_disk_that_cannot_be_written_costs_nothing_but_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "spool").write_text("a file where the folder should be")
    subject = spool(tmp_path / "spool")
    subject.failed(0.0)
    for seq in range(1, 200):
        subject.add(held(seq))
    assert numbers(subject) == list(range(1, 200))
    assert subject.trouble
    assert len(caplog.records) == 1


def test_memory_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "MEMORY_BYTES", 4000)
    subject = spool(None)
    subject.failed(0.0)
    for seq in range(1, 1001):
        subject.add(held(seq))
    kept = numbers(subject)
    assert 0 < len(kept) < 200
    assert subject.dropped == 1000 - len(kept)


@pytest.mark.parametrize("room", range(0, 3000, 173))
def test_a_disk_that_fills_up_and_empties_again_loses_nothing(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, write = [room], os.write

    def write_what_fits(file: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(28, "No space left on device")
        written = write(file, data[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", write_what_fits)
    subject = full(tmp_path / "spool", 100)
    left[0] = MIB
    for seq in range(101, 201):
        subject.add(held(seq))
    assert numbers(subject) == list(range(1, 201))
    assert subject.trouble is None
    on_disk = numbers(spool(tmp_path / "spool"))
    assert set(range(160, 201)) <= set(on_disk), "files are written again as soon as they can be"


def test_a_folder_of_a_newer_mole_is_refused_and_left_alone(tmp_path: Path) -> None:
    full(tmp_path / "spool", 3)
    (path,) = (tmp_path / "spool").glob("*.batch")
    newer = b"cluster-dash-spool 2 %08x\n" % zlib.crc32(b"2") + path.read_bytes()[30:]
    path.write_bytes(newer)
    with pytest.raises(SpoolFromTheFuture, match="newer mole"):
        spool(tmp_path / "spool")
    assert path.read_bytes() == newer


def test_a_flipped_bit_in_the_format_is_not_taken_for_a_newer_mole(tmp_path: Path) -> None:
    full(tmp_path / "spool", 3)
    (path,) = (tmp_path / "spool").glob("*.batch")
    path.write_bytes(path.read_bytes().replace(b"spool 1", b"spool 3", 1))
    assert numbers(spool(tmp_path / "spool")) == [1, 2, 3]


FEW = 8
COUNT = 3 * FEW + 7
small_host = partial(busy_host, gpus=1, processes=1)


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files of a spool whose batches hold FEW snapshots, which makes it quicker to read 500 times."""
    monkeypatch.setattr(spool_module, "ROWS", FEW)
    subject = spool(tmp_path / "whole")
    subject.failed(0.0)
    for each, _ in zip(small_host(), range(COUNT), strict=False):
        subject.add(each)
    subject.close()
    return {path.name: path.read_bytes() for path in sorted((tmp_path / "whole").iterdir())}


def test_damage_costs_what_was_damaged_and_is_counted(whole: dict[str, bytes], tmp_path: Path) -> None:
    """500 truncations and flipped bits, at every kind of place: headers, frames, texts, ends."""
    chance = random.Random(1)
    first = next(small_host()).seq
    last = first + COUNT - 1
    bodies = {each.seq: json.loads(each.body) for each, _ in zip(small_host(), range(COUNT), strict=False)}
    assert len(whole) == 4
    folder = tmp_path / "spool"
    cpu = os.times()
    for number in range(500):
        name = chance.choice(list(whole))
        damaged = bytearray(whole[name])
        place = chance.choice((chance.randrange(64), chance.randrange(len(damaged)), len(damaged) - 1 - number % 40))
        if number % 2:
            damaged[place] ^= 1 << chance.randrange(8)
        else:
            del damaged[place:]
        folder.mkdir()
        for other, data in whole.items():
            (folder / other).write_bytes(damaged if other == name else data)
        subject = spool(folder, last_seq=last)
        kept = subject.take(COUNT, 0.0)
        missing = set(bodies) - {each.seq for each in kept}
        first_of_file = first + FEW * list(whole).index(name)
        assert missing <= set(range(first_of_file, first_of_file + FEW)), "nothing beyond the file is lost"
        assert subject.dropped == len(missing), (name, place, number % 2)
        assert all(json.loads(each.body) == bodies[each.seq] for each in chance.sample(kept, 5))
        again = spool(folder, last_seq=last)
        assert (again.holding().waiting, again.oldest_seq(SOURCE)) == (len(kept), kept[0].seq)
        if missing:
            assert list(folder.glob("*.bad-*")) or not damaged or place in _ends(whole[name])
        shutil.rmtree(folder)
    spent = os.times().user - cpu.user
    assert spent / 1000 < 2, "seconds of CPU for a start, of which each turn has two"


def _ends(data: bytes) -> list[int]:
    """Return where rows end: a file that is cut there is whole in itself, and only its neighbours tell."""
    return [30, *(end for *_, end in rows(data))]


def test_a_file_of_noise_harms_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    full(tmp_path / "spool", 5)
    (tmp_path / "spool" / "0000000009.batch").write_bytes(os.urandom(5000))
    (tmp_path / "spool" / "durable").write_bytes(os.urandom(50))
    subject = spool(tmp_path / "spool")
    assert numbers(subject) == [1, 2, 3, 4, 5]
    assert subject.dropped >= 1
    assert list((tmp_path / "spool").glob("0000000009.batch.bad-*"))
    subject.add(held(6))
    assert numbers(subject)[-1] == 6


def test_files_that_were_set_aside_do_not_pile_up(tmp_path: Path) -> None:
    full(tmp_path / "spool", 5)
    for number in range(20):
        (tmp_path / "spool" / f"{number + 10:010}.batch").write_bytes(b"noise")
        spool(tmp_path / "spool")
    assert len(list((tmp_path / "spool").glob("*.bad-*"))) <= 5


def test_a_start_with_a_full_spool_is_quick(tmp_path: Path) -> None:
    subject = spool(tmp_path / "spool")
    subject.failed(0.0)
    for each, _ in zip(busy_host(), range(ROWS), strict=False):
        subject.add(each)
    (path,) = (tmp_path / "spool").iterdir()
    data = path.read_bytes()
    began = time.process_time()
    assert len(spool(tmp_path / "spool").take(ROWS, 1e9)) == ROWS
    whole = time.process_time() - began
    files = 16 * MIB // len(data)
    for number in range(2, files):
        path.with_name(f"{number:010}.batch").write_bytes(data)
    began = time.process_time()
    assert spool(tmp_path / "spool").holding().waiting > 15_000
    assert time.process_time() - began < files * whole / 3, "no file is unpacked"


def test_closing_waits_for_nobody(tmp_path: Path) -> None:
    subject = spool(tmp_path / "spool")
    subject.add(held(1))
    busy, done = threading.Event(), threading.Event()

    def hang() -> None:
        with subject._lock:
            busy.set()
            done.wait(60)

    thread = threading.Thread(target=hang)
    thread.start()
    busy.wait(60)
    subject.close(seconds=0.01)
    assert not (tmp_path / "spool").exists()
    done.set()
    thread.join()
    subject.close()
    assert numbers(spool(tmp_path / "spool")) == [1]
