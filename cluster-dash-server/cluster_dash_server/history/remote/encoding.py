"""Figures as remote-write requests of Prometheus (version 1): protobuf, of many snapshots at once. Pure.

The labels of a host's series hardly ever change, so all of a snapshot but its numbers is made once: a template. A
request is templates, one after the other, into which NumPy writes the numbers of all of them where they belong.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, compress, pairwise
from typing import TYPE_CHECKING, NamedTuple

from cluster_dash_server.history.late_numpy import np
from cluster_dash_server.store import GPU_METRICS, HOST_METRICS, Figures

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
_SAMPLE_BYTES = 16
_VALUE_BYTES, _MOMENT_BYTES = 8, 7
"""A sample is a tag, its value, and the moment with its own tag."""
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
    return _head(of_labels) + struct.pack("<d", value) + _moment(at_ms)


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
            ValueError: it is of a year far off, or has more or fewer values than its GPUs have.
        """
        return bytes(self.together((row,)))

    def together(self, rows: Sequence[Figures]) -> bytearray:
        """Encode snapshots one after the other: forty of them in a third of the time that they take one by one.

        Raises:
            ValueError: one is such as `encoded` refuses.
        """
        if not rows:
            return bytearray()
        values = np.frombuffer(b"".join([row.values for row in rows]), np.float32)
        known = np.isfinite(values)  # what is without bounds was too large for a row, and is left out, too
        templates = self._templates_of(rows, known.tobytes())
        at_ms = [millis(row.at) for row in rows]
        moments = np.frombuffer(b"".join(map(_moment, at_ms)), f"V{_MOMENT_BYTES}")
        body = bytearray().join([template.blank for template in templates])
        places = [template.places for template in templates]
        begins = np.array([0, *accumulate(len(template.blank) for template in templates)][:-1])

        figures = values[known] * np.concatenate([template.scales for template in templates])
        of_values = _places_of(body, _VALUE_BYTES)
        begins_of_each = np.repeat(begins, [len(each.values) for each in places])
        of_values[np.concatenate([each.values for each in places]) + begins_of_each] = _as_bytes(figures)
        of_values[begins + [each.last for each in places]] = _as_bytes(np.array(at_ms) / 1000)
        counts = [len(each.moments) for each in places]
        begins_of_each = np.repeat(begins, counts)
        of_moments = _places_of(body, _MOMENT_BYTES)
        of_moments[np.concatenate([each.moments for each in places]) + begins_of_each] = np.repeat(moments, counts)
        return body

    def parts(self, row: Figures) -> list[bytes]:
        """Encode a snapshot as its series, one by one; see `encoded`."""
        whole = self.encoded(row)
        ends = self._templates[row.host].places.moments + _MOMENT_BYTES
        return [whole[begin:end] for begin, end in pairwise((0, *ends.tolist()))]

    def _templates_of(self, rows: Sequence[Figures], known: bytes) -> "list[_Template]":
        """Return the template of each snapshot.

        Args:
            rows: the snapshots.
            known: a byte for each of their values, one after the other: 1 where it is known.
        """
        found = [self._templates.get(row.host) for row in rows]
        begin = 0
        for number, (template, row) in enumerate(zip(found, rows, strict=True)):
            end = begin + len(row.values)
            # a host may be there twice, and have another template the second time
            if template is None or not template.fits(row, known[begin:end]):
                found[number] = self._templates[row.host] = _Template(self._cluster, row, known[begin:end])
            begin = end
        return [template for template in found if template is not None]


class _Places(NamedTuple):
    """Where in a template the numbers stand: the known figures, the moment of each series, and the last value."""

    values: "NDArray[np.int64]"
    moments: "NDArray[np.int64]"
    last: int


class _Template:
    """A snapshot of a host without its numbers: fits all that have the same GPUs and lack the same figures."""

    def __init__(self, cluster: str, row: Figures, known: bytes) -> None:
        self.gpus = row.gpus
        self.known = known
        of_cluster, of_host = _often("cluster", cluster), _label("host", row.host)
        indices = tuple([gpu.gpu for gpu in row.gpus])
        without = bytes(_VALUE_BYTES + _MOMENT_BYTES)
        figures = [
            _head(b"".join((name, of_cluster, gpu, of_host))) + without
            for (name, gpu), is_known in zip(_names(indices), known, strict=True)
            if is_known
        ]
        fixed: list[bytes] = []
        for gpu in row.gpus:
            of_gpu = of_cluster + _often("gpu", str(gpu.gpu)) + of_host
            more = [_label(name, value) for name, value in (("model", gpu.model), ("uuid", gpu.uuid)) if value]
            head = _head(b"".join((_often("__name__", INFO), of_gpu, *more)))
            fixed.append(head + struct.pack("<d", 1.0) + bytes(_MOMENT_BYTES))
            if gpu.total_mem is not None:
                head = _head(_often("__name__", TOTAL_MEM) + of_gpu)
                fixed.append(head + struct.pack("<d", gpu.total_mem * MIB) + bytes(_MOMENT_BYTES))
        last = _head(_often("__name__", SNAPSHOT_AT) + of_cluster + of_host) + without
        each = [*figures, *fixed, last]
        self.blank = b"".join(each)
        self.places = _places(tuple(map(len, each)), len(figures))
        self.scales = _scales(len(indices), known)

    def fits(self, row: Figures, known: bytes) -> bool:
        return known == self.known and (row.gpus is self.gpus or row.gpus == self.gpus)


def _places_of(body: bytearray, size: int) -> "NDArray[np.void]":
    """Return a view of so many bytes from each place of a body on."""
    return np.ndarray((len(body) - size + 1,), f"V{size}", body, strides=(1,))


def _as_bytes(values: "NDArray[np.float64]") -> "NDArray[np.void]":
    return values.astype("<f8", copy=False).view(f"V{_VALUE_BYTES}")


@lru_cache(4096)
def _places(sizes: tuple[int, ...], figures: int) -> _Places:
    """Return places that hosts with names of one length share.

    Args:
        sizes: bytes of each series.
        figures: how many of them, the first ones, have figures as their values.
    """
    ends = np.cumsum(sizes)
    values = ends - (_VALUE_BYTES + _MOMENT_BYTES)
    return _Places(values[:figures], ends - _MOMENT_BYTES, int(values[-1]))


@lru_cache(4096)
def _scales(gpus: int, known: bytes) -> "NDArray[np.float64]":
    """Return what each known value of a row is to be multiplied with."""
    of_gpus = [NAMES[metric].scale for metric in GPU_METRICS for _ in range(gpus)]
    return np.array([*compress((*of_gpus, *(NAMES[metric].scale for metric in HOST_METRICS)), known)], np.float64)


@lru_cache(256)
def _names(gpus: tuple[int, ...]) -> list[tuple[bytes, bytes]]:
    """Return of each value of a row the label of its name, and the one of its GPU."""
    of_gpus = [
        (_often("__name__", PREFIX + NAMES[metric].name), _often("gpu", str(gpu)))
        for metric in GPU_METRICS
        for gpu in gpus
    ]
    return of_gpus + [(_often("__name__", PREFIX + NAMES[metric].name), b"") for metric in HOST_METRICS]


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
