"""Figures as remote-write requests of Prometheus (version 1): protobuf by one `struct.pack` a snapshot. Pure.

The labels of a host's series hardly ever change, so all of a snapshot but its numbers is made once: a template. A
request is any number of encoded snapshots, one after the other.
"""

import struct
from array import array
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from operator import mul
from typing import NamedTuple

from cluster_dash_server.store import GPU_METRICS, HOST_METRICS, Figures

MIB, GIB = 2.0**20, 2.0**30
PERCENT = 0.01


class Named(NamedTuple):
    """What an engine calls a figure, and what ours is to be multiplied with for it: base units there."""

    name: str
    scale: float = 1.0


PREFIX = "cluster_dash_"
NAMES = {
    "gpu_util": Named("gpu_busy_ratio", PERCENT),
    "memory_util": Named("gpu_memory_busy_ratio", PERCENT),
    "used_mem": Named("gpu_memory_used_bytes", MIB),
    "temperature_c": Named("gpu_temperature_celsius"),
    "memory_temperature_c": Named("gpu_memory_temperature_celsius"),
    "power_w": Named("gpu_power_watts"),
    "fan_percent": Named("gpu_fan_ratio", PERCENT),
    "sm_clock_mhz": Named("gpu_sm_clock_hertz", 1e6),
    "memory_clock_mhz": Named("gpu_memory_clock_hertz", 1e6),
    "encoder_util": Named("gpu_encoder_busy_ratio", PERCENT),
    "decoder_util": Named("gpu_decoder_busy_ratio", PERCENT),
    "tx_kib_s": Named("gpu_pcie_tx_bytes_per_second", 1024.0),
    "rx_kib_s": Named("gpu_pcie_rx_bytes_per_second", 1024.0),
    "unattributed_mem": Named("gpu_memory_unattributed_bytes", MIB),
    "doing": Named("gpu_doing"),
    "cpu_percent": Named("host_cpu_busy_ratio", PERCENT),
    "load_avg_1": Named("host_load1"),
    "memory_used_gb": Named("host_memory_used_bytes", GIB),
    "swap_used_gb": Named("host_swap_used_bytes", GIB),
    "disk_percent": Named("host_fullest_disk_used_ratio", PERCENT),
    "interval_seconds": Named("host_interval_seconds"),
}
"""Of each of GPU_METRICS and HOST_METRICS."""
INFO = f"{PREFIX}gpu_info"
"""1 for each GPU of a snapshot; its uuid and model are labels."""
TOTAL_MEM = f"{PREFIX}gpu_memory_total_bytes"
SNAPSHOT_AT = f"{PREFIX}host_last_snapshot_timestamp_seconds"
"""When a snapshot was taken: says which samples are of one snapshot."""
_SAMPLE = "d7s"  # a double behind its tag, and the moment with its own
_SAMPLE_BYTES = 16
_FIRST_MS, _AFTER_MS = 1 << 35, 1 << 42
"""Moments whose number takes six bytes: the years 1971 to 2109."""

Labels = Sequence[tuple[str, str]]


def millis(at: float) -> int:
    """Return a moment (Unix s) as engines have it."""
    return int(at * 1000 + 0.5)


def can_be_told(at: float) -> bool:
    """Say whether a moment fits into what is written."""
    return _FIRST_MS <= millis(at) < _AFTER_MS


def series(labels: Labels, value: float, at_ms: int) -> bytes:
    """Encode one sample of one series.

    Args:
        labels: names and values, sorted by name, `__name__` among them.
        value: its value.
        at_ms: Unix ms.
    """
    of_labels = b"".join([_label(name, value) for name, value in labels])
    return _head(of_labels) + struct.pack(f"<{_SAMPLE}", value, _moment(at_ms))


class Encoder:
    """Encodes snapshots; keeps a template of each host. One thread.

    Args:
        cluster: the label `cluster` of all series.
    """

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._templates: dict[str, _Template] = {}

    def encoded(self, row: Figures) -> bytes:
        """Encode a snapshot.

        Raises:
            ValueError: it has figures without bounds, or is of a year far off.
        """
        at_ms = millis(row.at)
        template = self._templates.get(row.host)
        if template is not None and template.fits(row):
            packed = template.pack(row.values, at_ms)
            if packed is not None:
                return packed
        template = self._templates[row.host] = _Template(self._cluster, row)
        packed = template.pack(row.values, at_ms)
        if packed is None:
            raise ValueError(f"{row.host}: figures without bounds")
        return packed

    def parts(self, row: Figures) -> list[bytes]:
        """Encode a snapshot as its series, one by one."""
        return _Template(self._cluster, row).parts(row.values, millis(row.at))


class _Template:
    """A snapshot of a host without its numbers: fits all that have the same GPUs and lack the same figures."""

    def __init__(self, cluster: str, row: Figures) -> None:
        self.gpus = row.gpus
        plain = row.values.tobytes()
        is_known = [value == value for value in row.values]
        runs = [(known, len(list(places))) for known, places in groupby(is_known)]
        # one call takes the known figures out, and a few compare what is between them: both in C
        form = "=" + "".join(f"{count}f" if known else f"{4 * count}x" for known, count in runs)
        self._known = _struct(form).unpack
        self._gaps: list[tuple[slice, bytes]] = []
        place = 0
        for known, count in runs:
            part = slice(4 * place, 4 * (place + count))
            if not known:
                self._gaps.append((part, plain[part]))
            place += count
        of_cluster, of_host = _often("cluster", cluster), _label("host", row.host)
        names = _names(tuple([gpu.gpu for gpu in row.gpus]))
        known_names = [name for name, known in zip(names, is_known, strict=True) if known]
        self._heads = [_head(b"".join((name, of_cluster, gpu, of_host))) for name, gpu, _ in known_names]
        self._scales = [scale for _, _, scale in known_names]
        self._fixed: list[bytes] = []
        for gpu in row.gpus:
            of_gpu = of_cluster + _often("gpu", str(gpu.gpu)) + of_host
            more = [_label(name, value) for name, value in (("model", gpu.model), ("uuid", gpu.uuid)) if value]
            head = _head(b"".join((_often("__name__", INFO), of_gpu, *more)))
            self._fixed.append(head + struct.pack("<d", 1.0))
            if gpu.total_mem is not None:
                head = _head(_often("__name__", TOTAL_MEM) + of_gpu)
                self._fixed.append(head + struct.pack("<d", gpu.total_mem * MIB))
        self._last = _head(_often("__name__", SNAPSHOT_AT) + of_cluster + of_host)
        of_figures = [f"{len(head)}s{_SAMPLE}" for head in self._heads]
        of_others = [*(f"{len(part)}s7s" for part in self._fixed), f"{len(self._last)}s{_SAMPLE}"]
        self._pack = _struct("<" + "".join(of_figures + of_others)).pack
        self._arguments: list[object] = [part for head in self._heads for part in (head, 0.0, b"")]
        self._after = len(self._arguments)
        self._arguments += [*(part for fixed in self._fixed for part in (fixed, b"")), self._last, 0.0, b""]

    def fits(self, row: Figures) -> bool:
        return row.gpus is self.gpus or row.gpus == self.gpus

    def numbers(self, values: "array[float]") -> list[float] | None:
        """Return the known figures in an engine's units; None where others are known than the template has."""
        plain = values.tobytes()
        for part, unknown in self._gaps:
            if plain[part] != unknown:
                return None
        known = self._known(plain)
        total = sum(known)
        return None if total != total else [*map(mul, known, self._scales)]

    def pack(self, values: "array[float]", at_ms: int) -> bytes | None:
        numbers = self.numbers(values)
        if numbers is None:
            return None
        arguments, after, moment = self._arguments, self._after, _moment(at_ms)
        arguments[1:after:3] = numbers
        arguments[2:after:3] = (moment,) * len(numbers)
        arguments[after + 1 : -3 : 2] = (moment,) * len(self._fixed)
        arguments[-2:] = (at_ms / 1000, moment)
        return self._pack(*arguments)

    def parts(self, values: "array[float]", at_ms: int) -> list[bytes]:
        moment = _moment(at_ms)
        figures = zip(self._heads, self.numbers(values) or (), strict=True)
        return [
            *(head + struct.pack(f"<{_SAMPLE}", value, moment) for head, value in figures),
            *(fixed + moment for fixed in self._fixed),
            self._last + struct.pack(f"<{_SAMPLE}", at_ms / 1000, moment),
        ]


@lru_cache(4096)
def _struct(form: str) -> struct.Struct:
    """Return a form that hosts with names of one length share: it takes as much as the rest of a template."""
    return struct.Struct(form)


@lru_cache(256)
def _names(gpus: tuple[int, ...]) -> list[tuple[bytes, bytes, float]]:
    """Return of each value of a row the label of its name, the one of its GPU, and its scale."""
    of_gpus = [
        (_often("__name__", PREFIX + NAMES[metric].name), _often("gpu", str(gpu)), NAMES[metric].scale)
        for metric in GPU_METRICS
        for gpu in gpus
    ]
    of_host = [(_often("__name__", PREFIX + NAMES[metric].name), b"", NAMES[metric].scale) for metric in HOST_METRICS]
    return of_gpus + of_host


def _label(name: str, value: str) -> bytes:
    return b"\x0a" + _sized(b"\x0a" + _sized(name.encode()) + b"\x12" + _sized(value.encode("utf-8", "replace")))


_often = lru_cache(1024)(_label)
"""For labels that many series have: a fleet's templates are made in a tenth of the time."""


def _head(labels: bytes) -> bytes:
    """Return a series with one sample up to the sample's value."""
    return b"".join(
        (b"\x0a", _varint(len(labels) + 2 + _SAMPLE_BYTES), labels, b"\x12", bytes((_SAMPLE_BYTES,)), b"\x09")
    )


def _moment(at_ms: int) -> bytes:
    """Return a moment behind its tag: seven bytes."""
    return bytes((0x10, at_ms & 127 | 128, at_ms >> 7 & 127 | 128)) + _sixteen_seconds(at_ms >> 14)


@lru_cache(64)
def _sixteen_seconds(number: int) -> bytes:
    """Return what all moments of some 16 s end with."""
    if not _FIRST_MS >> 14 <= number < _AFTER_MS >> 14:
        raise ValueError(f"{(number << 14) / 1000}: before 1971 or after 2109")
    return bytes((number & 127 | 128, number >> 7 & 127 | 128, number >> 14 & 127 | 128, number >> 21))


def _sized(part: bytes) -> bytes:
    return _varint(len(part)) + part


@lru_cache(1024)
def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)
