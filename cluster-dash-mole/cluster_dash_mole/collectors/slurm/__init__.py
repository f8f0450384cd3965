"""Slurm: nodes, queue and finished jobs of the whole cluster, asked for by one mole of it.

The commands run in a thread of their own, one after the other, a handful a minute, however many people look. A snapshot
never waits for them: it takes what was found last, and each finding once.
"""

import logging
import os
import pwd
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Protocol

from cluster_dash_mole.collectors.slurm import text
from cluster_dash_mole.collectors.slurm.ask import AskError, Commands
from cluster_dash_mole.collectors.slurm.block import DAY_SECONDS, Block, Found, Source, build, gpu_index
from cluster_dash_mole.mole import Clock, Reading

log = logging.getLogger(__name__)

LIMIT_SECONDS, ACCOUNTING_LIMIT_SECONDS = 20.0, 60.0
SELDOM_SECONDS, CONFIG_SECONDS = 300.0, 3600.0
LONGEST_PAUSE_SECONDS = 600.0
MANY_JOBS = 20_000
"""From so many jobs on their details, 1 kB each, are asked for as seldom as partitions are."""
_SHARE = 10
"""The pause is at least so many times as long as the asking took: a slow Slurm is asked less often."""
_MOST_FINISHED, _MOST_NAMES = 100_000, 200_000
_OVERLAP_SECONDS = 600.0
_OVER_IN_SACCT = "CD,F,TO,CA,NF,OOM,DL,PR,BF"
_HIDDEN_JOBS = ("jobs", "all")


class Ask(Protocol):
    """Runs a command; see `ask.Commands`."""

    def ask(self, command: Sequence[str], limit_seconds: float) -> IO[str]: ...  # noqa: D102 - the class says it


class SlurmCollector:
    """Reads the part `slurm`, by the commands of Slurm.

    Args:
        clock: the time.
        interval: seconds between two rounds of commands.
        commands: what runs them; None: in `folder` ("": in PATH).
        folder: where they are.
        at_once: whether `collect` itself runs them, for a single snapshot; else a thread does.
    """

    name = "slurm"

    def __init__(
        self, *, clock: Clock, interval: float, commands: Ask | None = None, folder: str = "", at_once: bool = False
    ) -> None:
        self._clock = clock
        self._interval = interval
        self._ask = commands or Commands(folder, os.environ)
        self._at_once = at_once
        self._thread: threading.Thread | None = None
        self._block: Block | None = None  # of the last round; taken away by the snapshot that holds it
        self._trouble: str | None = None  # of the last round
        self._failures = 0
        self._took = 0.0  # seconds that the last round took that was well
        self._due: dict[str, float] = {}
        self._sources: dict[str, Source] = {}
        self._version: str | None = None
        self._config: Mapping[str, str] = {}
        self._nodes: list[text.Node] | None = None
        self._jobs: list[text.Job] | None = None
        self._unread = 0
        self._details: dict[int, text.Detail] = {}
        self._partitions: list[text.Partition] | None = None
        self._scheduler: Mapping[str, int | None] | None = None
        self._finished: dict[tuple[int, float | None], text.Finished] = {}
        self._names: dict[int, str] = {}

    def collect(self) -> Reading:
        """Return what was found since the last call, if anything was. Never waits for Slurm, but for `at_once`."""
        if self._at_once:
            self.round()
        elif self._thread is None:
            # not before: the GPU collector forks while there is one thread
            self._thread = threading.Thread(target=self._run, name="slurm", daemon=True)
            self._thread.start()
        block, self._block = self._block, None
        trouble = self._trouble
        return Reading(once={"slurm": block} if block else {}, ok=trouble is None, error=trouble)

    def _run(self) -> None:
        while True:
            self._clock.sleep(self.round())

    def round(self) -> float:
        """Ask for all that is due; return after how many seconds to ask again."""
        began = self._clock.monotonic()
        asked_before = set(self._due)
        try:
            self._look()
        except Exception as error:  # a fault of ours must not end the thread
            log.debug("slurm: failed", exc_info=True)
            self._trouble = f"{type(error).__name__}: {error}"
        took = self._clock.monotonic() - began
        failed = self._sources.get("nodes")
        self._failures = self._failures + 1 if failed is None or not failed.ok else 0
        if not asked_before and self._failures == 0:
            log.info("slurm: %d nodes, %d jobs read in %.1f s", len(self._nodes or ()), len(self._jobs or ()), took)
        if not self._failures:
            self._took = took
        return self._pause()

    def _pause(self) -> float:
        """Return how long to wait: longer for a slow Slurm, and twice as long after each failure."""
        pause = self._interval * 2.0 ** min(self._failures, 10) if self._failures else self._pace()
        return max(self._interval, min(pause, LONGEST_PAUSE_SECONDS))

    def _pace(self) -> float:
        """Return how often Slurm is asked (s): as set, or as seldom as it is slow."""
        return max(self._interval, min(_SHARE * self._took, LONGEST_PAUSE_SECONDS))

    # ------------------------------------------------------------------------------------------------- one round

    def _look(self) -> None:
        steps: tuple[tuple[str, float, Callable[[], None]], ...] = (
            ("nodes", 0, self._look_at_nodes),
            ("jobs", 0, self._look_at_jobs),
            ("details", SELDOM_SECONDS if len(self._jobs or ()) > MANY_JOBS else 0, self._look_at_details),
            *self._seldom(),
            ("finished", SELDOM_SECONDS, self._look_at_finished),
        )
        unanswered: AskError | None = None
        for name, every, look in steps:
            if self._clock.monotonic() < self._due.get(name, float("-inf")):
                continue
            of_controller = name != "finished"
            began = self._clock.monotonic()
            try:
                if of_controller and unanswered:
                    raise unanswered
                look()
            except AskError as error:
                unanswered = error if of_controller else unanswered
                last = self._sources.get(name)
                self._sources[name] = Source(ok=False, at=last.at if last else None, seconds=None, error=str(error))
            else:
                took = round(self._clock.monotonic() - began, 3)
                self._sources[name] = Source(ok=True, at=round(self._clock.now(), 3), seconds=took, error=None)
                self._due[name] = began + every - self._interval / 2 if every else began
        self._remember_names()
        self._block = build(self._found())
        self._trouble = self._in_words()

    def _seldom(self) -> tuple[tuple[str, float, Callable[[], None]], ...]:
        """Return what else is asked for in this round. Reading the settings takes two questions, so they go alone."""
        first = "sdiag" not in self._sources
        if not first and self._clock.monotonic() >= self._due.get("config", float("-inf")):
            return (("config", CONFIG_SECONDS, self._look_at_config),)
        return (
            ("partitions", SELDOM_SECONDS, self._look_at_partitions),
            ("sdiag", 0, self._look_at_scheduler),
        )

    @contextmanager
    def _answer(self, *command: str, limit: float = LIMIT_SECONDS) -> Iterator[IO[str]]:
        answer = self._ask.ask(command, limit)
        try:
            yield answer
        finally:
            answer.close()

    def _look_at_nodes(self) -> None:
        if self._version is None:
            with self._answer("scontrol", "-V") as said:  # asks nobody
                self._version = said.read(256).split()[-1]
        with self._answer("scontrol", "-o", "-d", "show", "node") as said:
            self._nodes = text.parse_nodes(said)

    def _look_at_jobs(self) -> None:
        columns = ",".join(f"{column}:|" for column in text.QUEUE_COLUMNS)
        with self._answer("squeue", "-h", "-a", "-t", "all", "--noconvert", "-O", columns) as said:
            self._jobs, self._unread = text.parse_queue(said)

    def _look_at_details(self) -> None:
        jobs = {job.id: job for job in self._jobs or ()}
        with self._answer("scontrol", "-o", "-d", "show", "job") as said:
            self._details = text.parse_details(said, jobs)

    def _look_at_partitions(self) -> None:
        with self._answer("scontrol", "-o", "show", "partition") as said:
            self._partitions = text.parse_partitions(said)

    def _look_at_scheduler(self) -> None:
        with self._answer("sdiag") as said:
            self._scheduler = text.parse_scheduler(said.read())

    def _look_at_config(self) -> None:
        with self._answer("scontrol", "show", "config") as said:
            self._config = text.parse_config(said)

    def _look_at_finished(self) -> None:
        """Ask the accounting for what ended since it last answered, and a little more: an overlap is harmless."""
        last = self._sources.get("finished")
        now = self._clock.now()
        since = now - DAY_SECONDS if last is None or last.at is None else last.at - _OVERLAP_SECONDS
        minutes = max(1, round((now - since) / 60))
        columns = ",".join(text.FINISHED_COLUMNS)
        window = ("-S", f"now-{minutes}minutes", "-E", "now", "-s", _OVER_IN_SACCT)
        command = ("sacct", "-a", "-X", "-n", "-P", *window, "-o", columns)
        with self._answer(*command, limit=ACCOUNTING_LIMIT_SECONDS) as said:
            self._keep(text.parse_finished(said))

    def _keep(self, jobs: Sequence[text.Finished]) -> None:
        """Keep finished jobs for a day, each run of a job once."""
        oldest = self._clock.now() - DAY_SECONDS
        for job in jobs:
            self._finished.setdefault((job.id, job.submitted_at), job)  # what the accounting said first stays
        kept = {key: job for key, job in self._finished.items() if (job.ended_at or 0) >= oldest}
        newest = sorted(kept, key=lambda key: -(kept[key].ended_at or 0))[:_MOST_FINISHED]
        self._finished = kept if len(kept) <= _MOST_FINISHED else {key: kept[key] for key in newest}

    def _remember_names(self) -> None:
        """Keep the names of jobs, which the accounting is not asked for; and what the queue says of finished ones."""
        if len(self._names) > _MOST_NAMES:
            self._names = {}
        self._names |= {number: detail.name for number, detail in self._details.items() if detail.name}
        self._keep([_finished(job) for job in self._jobs or () if job.state in text.OVER])

    def _found(self) -> Found:
        source = self._sources.get("finished")
        accounting = source is not None and source.at is not None
        return Found(
            collected_at=round(self._clock.now(), 3),
            interval_seconds=self._pace(),
            sources={name: each for name, each in self._sources.items() if name != "config"},
            version=self._version,
            cluster=self._config.get("ClusterName"),
            nodes=self._nodes,
            jobs=self._jobs,
            details=self._details,
            partitions=self._partitions,
            finished=list(self._finished.values()) if accounting or self._jobs is not None else None,
            names=self._names,
            scheduler=self._scheduler,
            notes=tuple(self._notes()),
        )

    def _notes(self) -> Iterator[str]:
        """Say what cannot be seen, and what would show it."""
        if self._pace() > self._interval:
            yield f"CD502 Slurm took {self._took:.0f} s to answer: it is asked every {self._pace():.0f} s"
        user = _me()
        unseen = sum(
            job.gpus > 0 and job.state in text.ON_NODES and gpu_index(job, self._details.get(job.id)) is None
            for job in self._jobs or ()
        )
        details = self._sources.get("details")
        if unseen and details is not None and details.ok and len(self._jobs or ()) <= MANY_JOBS:
            yield (
                f"{user} is not told the GPUs of {_counted(unseen, 'running job')}: "
                f"sacctmgr add user {user} AdminLevel=Operator (or their names forge records)"
            )
        if any(word in _HIDDEN_JOBS for word in self._config.get("PrivateData", "").split(",")):
            yield f"PrivateData hides jobs of others, unless {user} is an operator"
        if self._unread:
            yield f"{_counted(self._unread, 'line')} of squeue could not be read"
        finished = self._sources.get("finished")
        if finished is not None and finished.at is None:
            yield "No accounting answers: of finished jobs only those are known that the queue still shows"

    def _in_words(self) -> str | None:
        """Say what failed in the last round, and when it last went well; None where nothing did."""
        failed = {name: each for name, each in self._sources.items() if not each.ok and name != "finished"}
        if not failed:
            return None
        source = next(iter(failed.values()))
        what = "Slurm" if "nodes" in failed else " and ".join(failed)
        last = "never yet" if source.at is None else f"last at {time.strftime('%H:%M:%S', time.localtime(source.at))}"
        return f"{what} not read ({last}): {source.error}"


def _finished(job: text.Job) -> text.Finished:
    return text.Finished(
        id=job.id,
        array=job.array,
        user=job.user,
        account=job.account,
        partition=job.partition,
        state=job.state,
        exit=job.exit,
        submitted_at=job.submitted_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        cpus=job.cpus,
        gpus=job.gpus,
        nodes=job.nodes,
    )


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _me() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"
