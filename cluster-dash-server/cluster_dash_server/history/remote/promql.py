"""Questions to history as PromQL: what engines answer to `query` and `query_range`, as series and rows of ours.

A step is asked for at its last millisecond, over its own length: engines count what lies before a moment.
"""

import contextlib
import json
import math
import re
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Literal, NamedTuple
from urllib.parse import urlencode

from cluster_dash_server.history.remote.encoding import INFO, MIB, NAMES, PREFIX, SNAPSHOT_AT, TOTAL_MEM, millis
from cluster_dash_server.history.remote.engine import Access, Connection, EngineError, refusal
from cluster_dash_server.history.remote.recording import OF_ALL, cluster_name, user_name
from cluster_dash_server.history.rollups import HOUR
from cluster_dash_server.history.steps import Steps, steps_of, user_series
from cluster_dash_server.store import (
    GPU_METRICS,
    HOST_METRICS,
    USER_METRICS,
    Figures,
    GpuId,
    Series,
    SeriesQuery,
    StoreError,
    Usage,
)

MOST_STEPS = 10_000
"""Engines refuse more than 11,000 steps in an answer."""
MOST_IDLE = 8
"""Connections that are kept while nobody asks."""
_AGES = (0.0, 6.0, 30.0, 120.0, 600.0)
"""Hosts are asked for their last samples by how old those are, so that few samples are sent that are not the last."""
_METRICS = {PREFIX + named.name: metric for metric, named in NAMES.items()}
_LEAST_MS = 1

_loads: Callable[[bytes], Any] = json.loads
with contextlib.suppress(ImportError):  # an answer may have millions of numbers
    import orjson

    _loads = orjson.loads


class _Gpu(NamedTuple):
    """A GPU as its info series names it."""

    host: str
    gpu: int
    uuid: str | None
    model: str | None


class Asker:
    """Asks an engine; any thread.

    Args:
        access: where it is.
        cluster: the label `cluster`.
        clock: Unix s.
    """

    def __init__(self, access: Access, cluster: str, clock: Callable[[], float]) -> None:
        self._access = access
        self._cluster = cluster
        self._clock = clock
        self._is_closed = False
        self._idle: deque[Connection] = deque()

    def series(self, ask: SeriesQuery) -> list[Series]:
        """See `Store.series`; of users, those of all hosts together."""
        steps = steps_of(ask)
        if ask.by == "user":
            return self._users(ask, steps)
        if ask.by in ("cluster", "model"):
            return self._cluster_or_models(ask, steps)
        if ask.metric in HOST_METRICS:
            return self._host_figures(ask, steps)
        if ask.by == "host" and ask.models is None:
            return self._gpus_of_hosts(ask, steps)
        return self._gpus(ask, steps)

    # ------------------------------------------------------------------------------------------- GPUs and hosts

    def _host_figures(self, ask: SeriesQuery, steps: Steps) -> list[Series]:
        name, scale = NAMES[ask.metric]
        found = self._least_mean_most(PREFIX + name, self._of_hosts(ask), steps, scale, ("host",))
        there = {(each["host"],) for each in self._there(SNAPSHOT_AT, self._of_hosts(ask), steps)}
        return [_series(steps, found.get(key), host=key[0]) for key in sorted(there)]

    def _gpus_of_hosts(self, ask: SeriesQuery, steps: Steps) -> list[Series]:
        """Answer for all GPUs of each host together: the engine adds them up."""
        name, scale = NAMES[ask.metric]
        where = {**self._of_hosts(ask), **_one_of("gpu", ask.gpus)}
        chosen, window = self._chosen(PREFIX + name, where), _window(steps.seconds)
        found = self._lines(
            ("host",),
            steps,
            scale,
            f"min by (host) (min_over_time({chosen}{window}))",
            f"sum by (host) (sum_over_time({chosen}{window})) / sum by (host) (count_over_time({chosen}{window}))",
            f"max by (host) (max_over_time({chosen}{window}))",
        )
        there = {(each["host"],) for each in self._there(INFO, where, steps)}
        return [_series(steps, found.get(key), host=key[0]) for key in sorted(there)]

    def _gpus(self, ask: SeriesQuery, steps: Steps) -> list[Series]:
        name, scale = NAMES[ask.metric]
        where = {**self._of_hosts(ask), **_one_of("gpu", ask.gpus)}
        gpus = self._known_gpus(where, steps)
        if ask.models is not None:
            gpus = [gpu for gpu in gpus if gpu.model in ask.models]
        if not gpus:
            return []
        if ask.by == "gpu":
            found = self._least_mean_most(PREFIX + name, where, steps, scale, ("host", "gpu"))
            return [
                _series(
                    steps,
                    found.get((gpu.host, str(gpu.gpu))),
                    host=gpu.host,
                    gpu=gpu.gpu,
                    uuid=gpu.uuid,
                    model=gpu.model,
                )
                for gpu in gpus
            ]
        # the GPUs of some models, by host: engines know the model of the info series only
        together = []
        for host in sorted({gpu.host for gpu in gpus}):
            of_host = tuple(gpu.gpu for gpu in gpus if gpu.host == host)
            (line,) = self._gpus_of_hosts(
                SeriesQuery(
                    metric=ask.metric,
                    begin=ask.begin,
                    end=ask.end,
                    by="host",
                    step_seconds=steps.seconds,
                    hosts=(host,),
                    gpus=of_host,
                ),
                steps,
            )
            together.append(line)
        return together

    def _known_gpus(self, where: Mapping[str, Sequence[str]], steps: Steps) -> list[_Gpu]:
        """Return the GPUs that were there, by host and index; of those that were replaced the last ones."""
        found: dict[tuple[str, int], list[dict[str, str]]] = {}
        for labels in self._there(INFO, where, steps):
            found.setdefault((labels["host"], int(labels["gpu"])), []).append(labels)
        gpus = []
        for (host, gpu), named in sorted(found.items(), key=lambda each: each[0]):
            last = named[0] if len(named) == 1 else self._last_of(host, gpu, steps)
            gpus.append(_Gpu(host, gpu, last.get("uuid"), last.get("model")))
        return gpus

    def _last_of(self, host: str, gpu: int, steps: Steps) -> dict[str, str]:
        """Return the labels of the GPU that was in a place last."""
        span = steps.end - steps.begin
        chosen = self._chosen(INFO, {"host": (host,), "gpu": (str(gpu),)})
        every = max(1.0, span / MOST_STEPS)
        asked = f"max_over_time(timestamp({chosen})[{_ms(span)}:{_ms(every)}])"
        found = self._ask_at(asked, steps.end)
        return max(found, key=lambda each: float(each["value"][1]))["metric"] if found else {}

    def _of_hosts(self, ask: SeriesQuery) -> Mapping[str, Sequence[str]]:
        return {} if ask.hosts is None else {"host": ask.hosts}

    # ------------------------------------------------------------------------------- cluster, models and users

    def _cluster_or_models(self, ask: SeriesQuery, steps: Steps) -> list[Series]:
        by_model = ask.by == "model"
        labels = ("model",) if by_model else ()
        where: Mapping[str, Sequence[str]] = {} if not by_model or ask.models is None else {"model": ask.models}
        name = cluster_name(ask.metric, by_model=by_model)
        found = self._least_mean_most(name, where, steps, OF_ALL[ask.metric].scale, labels)
        there = set(found)
        if ask.metric in ("gpu_util", "memory_percent", "used_mem", "power_w"):  # these may be unknown all the time
            counted = self._there(cluster_name("total_gpus", by_model=by_model), where, steps)
            there |= {tuple(each[label] for label in labels) for each in counted}
        return [_series(steps, found.get(key), model=key[0] if key else None) for key in sorted(there)]

    def _users(self, ask: SeriesQuery, steps: Steps) -> list[Series]:
        """Answer by the same sums of hours as other kinds: what a user had, and hours of which something is known."""
        where: Mapping[str, Sequence[str]] = {} if ask.users is None else {"user": ask.users}
        first, last = int(steps.begin // HOUR) * HOUR, -int(-steps.end // HOUR) * HOUR
        found, covered = [], dict[float, float]()
        for begin in range(first, last, MOST_STEPS * HOUR):
            hours = Steps(begin, HOUR, min(MOST_STEPS, (last - begin) // HOUR))
            held = f"sum_over_time({self._chosen(user_name(ask.metric), where)}{_window(HOUR)})"
            for line in self._ask(held, hours):
                for at, value in line["values"]:
                    hour = _hour_of(hours, at)
                    found.append(_held(line["metric"]["user"], hour, ask.metric, float(value) * 60))
            counted = self._chosen(cluster_name("total_gpus", by_model=False), {})
            for line in self._ask(f"count_over_time({counted}{_window(HOUR)})", hours):
                covered |= {_hour_of(hours, at): 60 * float(value) for at, value in line["values"]}
        return user_series(found, covered, ask.metric, steps)

    def recorded(self, first: int, last: int) -> set[int]:
        """Return the minutes of the cluster that the engine has, of those from the first to the last.

        Raises:
            StoreError: it cannot be asked.
        """
        found: set[int] = set()
        chosen = self._chosen(cluster_name("total_gpus", by_model=False), {})
        for begin in range(first, last + 60, MOST_STEPS * 60):
            steps = Steps(begin, 60, min(MOST_STEPS, (last + 60 - begin) // 60))
            for line in self._ask(f"count_over_time({chosen}{_window(60)})", steps):
                found |= {begin + 60 * _place(at, steps) for at, _ in line["values"]}
        return found

    # -------------------------------------------------------------------------------------------------- moments

    def moment(self, at: float, silent_seconds: float) -> list[Figures]:
        """See `Store.moment`; who had which GPU is not known here."""
        at = math.floor(at * 1000) / 1000
        newest = {
            line["metric"]["host"]: float(line["value"][1])
            for line in self._ask_at(
                f"last_over_time({self._chosen(SNAPSHOT_AT, {})}[{_ms(silent_seconds)}])", at + _LEAST_MS / 1000
            )
        }
        found: list[Figures] = []
        for young, old in zip(_AGES, (*_AGES[1:], float("inf")), strict=True):
            hosts = [host for host, then in newest.items() if young <= at - then < min(old, silent_seconds + 0.001)]
            if hosts:
                found += self._rows(hosts, newest, at - young, min(old, silent_seconds + 1) - young)
        return sorted(found, key=lambda row: row.host)

    def _rows(self, hosts: list[str], newest: dict[str, float], at: float, seconds: float) -> Iterator[Figures]:
        """Give the last rows of hosts, all of which lie within some seconds before a moment."""
        figures: dict[str, dict[tuple[str, int | None], float]] = {host: {} for host in hosts}
        gpus: dict[str, dict[int, dict[str, str]]] = {host: {} for host in hosts}
        where = {"host": hosts}
        chosen = self._chosen(None, where, f'__name__=~"{PREFIX}(gpu|host)_.+"')
        for line in self._ask_at(f"{chosen}[{_ms(seconds)}]", at + _LEAST_MS / 1000):
            labels = line["metric"]
            host, name = labels["host"], labels["__name__"]
            then, value = line["values"][-1]
            if millis(then) != millis(newest[host]):
                continue  # of an earlier snapshot
            gpu = int(labels["gpu"]) if "gpu" in labels else None
            if name == INFO and gpu is not None:
                gpus[host][gpu] = labels
            else:
                figures[host][name, gpu] = float(value)
        for host in hosts:
            yield _row(host, newest[host], gpus[host], figures[host])

    def fill(self, rows: Sequence[Figures]) -> None:
        """Put into rows of one host, of an hour or so, what the engine knows of them beyond what they hold.

        Raises:
            StoreError: it cannot be asked.
        """
        if not rows:
            return
        begin, end = min(row.at for row in rows), max(row.at for row in rows)
        chosen = self._chosen(None, {"host": [rows[0].host]}, f'__name__=~"{PREFIX}(gpu|host)_.+"')
        found: dict[int, dict[tuple[str | None, int | None], float]] = {}
        for line in self._ask_at(f"{chosen}[{_ms(end - begin + 2)}]", end + 1):
            labels = line["metric"]
            key = _METRICS.get(labels["__name__"]), int(labels["gpu"]) if "gpu" in labels else None
            for at, value in line["values"]:
                found.setdefault(millis(at), {})[key] = float(value)
        for row in rows:
            of = found.get(millis(row.at), {})
            values = [_value(of, metric, gpu.gpu) for metric in GPU_METRICS for gpu in row.gpus]
            values += [_value(of, metric, None) for metric in HOST_METRICS]
            row.values = array(
                "f", [mine if mine == mine else there for mine, there in zip(row.values, values, strict=True)]
            )

    def is_empty(self, now: float) -> bool:
        """Say whether nothing of the cluster was written in the last 400 days.

        Raises:
            StoreError: it cannot be asked.
        """
        return not self._ask_at(f"last_over_time({self._chosen(SNAPSHOT_AT, {})}[400d])", now + 1)

    # --------------------------------------------------------------------------------------------------- asking

    def _chosen(self, name: str | None, where: Mapping[str, Sequence[str]], *more: str) -> str:
        """Return a selector of series by their labels; without a value there is nothing to choose of."""
        matchers = [f"cluster={_quoted(self._cluster)}", *more]
        for label, values in where.items():
            if len(values) == 1:
                matchers.append(f"{label}={_quoted(values[0])}")
            else:
                matchers.append(f"{label}=~{_quoted('|'.join(map(re.escape, values)))}")
        return f"{name or ''}{{{','.join(matchers)}}}"

    def _there(self, name: str, where: Mapping[str, Sequence[str]], steps: Steps) -> list[dict[str, str]]:
        """Return the labels of the series that have samples within some steps."""
        asked = f"last_over_time({self._chosen(name, where)}{_window(steps.end - steps.begin)})"
        return [line["metric"] for line in self._ask_at(asked, steps.end)]

    def _least_mean_most(
        self, name: str, where: Mapping[str, Sequence[str]], steps: Steps, scale: float, labels: tuple[str, ...]
    ) -> "dict[tuple[str, ...], _Line]":
        chosen, window = self._chosen(name, where), _window(steps.seconds)
        asked = [f"{word}_over_time({chosen}{window})" for word in ("min", "avg", "max")]
        return self._lines(labels, steps, scale, *asked)

    def _lines(
        self, labels: tuple[str, ...], steps: Steps, scale: float, least: str, mean: str, most: str
    ) -> "dict[tuple[str, ...], _Line]":
        """Return least, mean and most of each series, named by some labels; a figure is a float32."""
        lines: dict[tuple[str, ...], _Line] = {}
        for place, asked in enumerate((least, mean, most)):
            for found in self._ask(asked, steps):
                key = tuple(found["metric"][label] for label in labels)
                line = lines.get(key)
                if line is None:
                    line = lines[key] = _Line([None] * steps.count, [None] * steps.count, [None] * steps.count)
                numbers = array("f", [float(value) / scale for _, value in found["values"]])
                total = sum(numbers)
                if len(numbers) == steps.count and total == total:
                    line[place][:] = numbers.tolist()
                    continue
                for (at, _), number in zip(found["values"], numbers, strict=True):
                    if number == number:
                        line[place][_place(at, steps)] = number
        return lines

    def _ask(self, asked: str, steps: Steps) -> list[dict[str, Any]]:
        if steps.count < 1:
            return []
        first = steps.begin + steps.seconds - _LEAST_MS / 1000
        return self._answer(
            "query_range",
            query=asked,
            start=f"{first:.3f}",
            end=f"{first + (steps.count - 1) * steps.seconds:.3f}",
            step=f"{steps.seconds:.3f}",
        )

    def _ask_at(self, asked: str, end: float) -> list[dict[str, Any]]:
        """Ask for what was up to a moment, without it."""
        return self._answer("query", query=asked, time=f"{end - _LEAST_MS / 1000:.3f}")

    def _answer(self, path: Literal["query", "query_range"], **fields: str) -> list[dict[str, Any]]:
        """Ask; raises StoreError."""
        # VictoriaMetrics keeps answers, and gives them again although a backlog has added to what they tell
        # and a cluster of VictoriaMetrics, or Thanos, of which a part is away would tell of the rest as if it were all
        whole = {"deny_partial_response": "1", "partial_response": "false"}
        body = urlencode({**fields, "nocache": "1", **whole}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = Connection(self._access.read_url, self._access)
        was_open = connection.is_open
        try:
            try:
                answer = connection.post(f"/api/v1/{path}", body, headers)
            except EngineError:
                if not was_open:
                    raise
                answer = connection.post(f"/api/v1/{path}", body, headers)  # it was let go of while nobody asked
        except (EngineError, OSError) as error:
            raise StoreError(f"history cannot be read: {error}") from None
        if self._is_closed or len(self._idle) >= MOST_IDLE:
            connection.close()
        else:
            self._idle.append(connection)
        try:
            found = _loads(answer.body)
            if not answer.is_good or found["status"] != "success":
                why = found.get("error") or refusal(answer)
                raise StoreError(f"history cannot be read: the engine says: {why}")
            if found.get("isPartial"):
                raise StoreError("history cannot be read: a part of the engine is away")
            result: list[dict[str, Any]] = found["data"]["result"]
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise StoreError(f"history cannot be read: {refusal(answer)}") from None
        return result

    def delete_user(self, user: str) -> str | None:
        """Delete the rows of a user; return why the engine does not, None where it did.

        Raises:
            StoreError: it cannot be asked now.
        """
        chosen = self._chosen(None, {"user": [user]}, f'__name__=~"{PREFIX}user_.+"')
        with closing(Connection(self._access.read_url, self._access)) as connection:
            try:
                answer = connection.post(
                    "/api/v1/admin/tsdb/delete_series",
                    urlencode({"match[]": chosen}).encode(),
                    {"Content-Type": "application/x-www-form-urlencoded"},
                )
            except (EngineError, OSError) as error:
                raise StoreError(f"history cannot be written: {error}") from None
        if answer.status in (429, 502, 503, 504):
            raise StoreError(f"history cannot be written: {refusal(answer)}")
        return None if answer.is_good else refusal(answer)

    def check(self) -> None:
        """Ask for nothing much.

        Raises:
            StoreError: the engine cannot be read.
        """
        self._answer("query", query="vector(1)")

    def close(self) -> None:
        """Let go of the connections."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()


class _Line(NamedTuple):
    """One series of an answer: a number for each step."""

    least: list[float | None]
    mean: list[float | None]
    most: list[float | None]


def _series(
    steps: Steps,
    line: _Line | None,
    *,
    host: str | None = None,
    gpu: int | None = None,
    uuid: str | None = None,
    model: str | None = None,
) -> Series:
    nothing: list[float | None] = [None] * steps.count
    least, mean, most = line or (nothing, nothing, nothing)
    return Series(
        step_seconds=steps.seconds,
        t=steps.starts(),
        min=least,
        mean=mean,
        max=most,
        host=host,
        gpu=gpu,
        uuid=uuid,
        model=model,
    )


def _hour_of(hours: Steps, at: float) -> float:
    return hours.begin + (at - hours.begin) // HOUR * HOUR


def _held(user: str, hour: float, metric: str, seconds: float) -> Usage:
    """Return one figure of what a user had in an hour."""
    of = {name: seconds if name == metric else 0.0 for name in USER_METRICS}
    return Usage(
        user=user,
        hour=hour,
        held_seconds=of["held_gpus"],
        busy_seconds=of["busy_gpus"],
        idle_seconds=of["idle_gpus"],
        allocated_seconds=None,
        util_seconds=0.0,
        seen_seconds=seconds,
    )


def _row(
    host: str, at: float, gpus: dict[int, dict[str, str]], figures: dict[tuple[str, int | None], float]
) -> Figures:
    order = sorted(gpus)
    of = {(_METRICS.get(name), gpu): value for (name, gpu), value in figures.items()}
    values = [_value(of, metric, gpu) for metric in GPU_METRICS for gpu in order]
    values += [_value(of, metric, None) for metric in HOST_METRICS]
    total = {gpu: figures.get((TOTAL_MEM, gpu)) for gpu in order}
    return Figures(
        host=host,
        at=at,
        boot_id=None,
        seq=None,
        oldest_seq=None,
        gpus=tuple(
            GpuId(gpu, gpus[gpu].get("uuid"), gpus[gpu].get("model"), None if mem is None else mem / MIB)
            for gpu, mem in total.items()
        ),
        values=array("f", values),
        holders=(),
        holder_mem=array("f"),
    )


def _value(of: dict[tuple[str | None, int | None], float], metric: str, gpu: int | None) -> float:
    value = of.get((metric, gpu))
    return math.nan if value is None else value / NAMES[metric].scale


def _place(at: float, steps: Steps) -> int:
    return int((at - steps.begin) // steps.seconds)


def _one_of(label: str, values: Iterable[int] | None) -> Mapping[str, Sequence[str]]:
    return {} if values is None else {label: [str(value) for value in values]}


def _window(seconds: float) -> str:
    return f"[{_ms(seconds)}]"


def _ms(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"


def _quoted(text: str) -> str:
    """Quote a text as PromQL has it: as Go does, and so nearly as JSON."""
    return json.dumps(text, ensure_ascii=False)
