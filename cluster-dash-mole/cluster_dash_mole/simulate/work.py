"""What runs on simulated GPUs: jobs of several kinds that start and end, by a random generator that is handed in."""

import math
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

USERS = (
    *("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy", "karl", "lena", "mallory"),
    *("nina", "oscar", "peggy", "quinn", "rupert", "sybil", "trent", "uma", "victor", "wendy", "yusuf", "zoe"),
)

BEFORE_SECONDS = 8 * 3600.0
"""How long the fleet has been at work at least when the night begins: its jobs are of all ages then."""
BUSY_SHARE = 0.68
"""The share of time that a GPU is given to a job, about."""
LOADING_SECONDS = 25.0
"""A job fills its memory for so long before it computes."""
CHECKPOINT_EVERY_SECONDS, CHECKPOINT_SECONDS = 900.0, 12.0
HEAT_SECONDS = 75.0
"""How slowly a heat sink follows: after so long, two thirds of the way."""
LOAD_AVG_SECONDS = (60.0, 300.0, 900.0)


class Work(NamedTuple):
    """A kind of job.

    Attributes:
        program: the name of its processes.
        weight: how often it comes.
        minutes: the median of how long it takes.
        util: the range of its mean utilisation, percent.
        swing: how far it swings about that, percent.
        memory: the range of what it takes of a GPU's memory, of 1.
        processes: how many it has on a GPU.
        cores: CPU cores it keeps busy for a GPU.
        ram_gb: the host's memory it takes for a GPU, 2^30 bytes.
        draw: the power it draws at full utilisation, of 1.
    """

    program: str
    weight: float
    minutes: float
    util: tuple[float, float]
    swing: float
    memory: tuple[float, float]
    processes: int
    cores: float
    ram_gb: float
    draw: float


# program, weight, minutes, util, swing, memory, processes, cores, ram_gb, draw
TRAINING = Work("pt_main_thread", 4, 160, (92, 98), 3, (0.6, 0.93), 1, 5.5, 52, 0.94)
TUNING = Work("python3", 3, 50, (66, 90), 10, (0.3, 0.8), 2, 4, 40, 0.85)
SERVING = Work("VLLM::EngineCore", 1.5, 300, (25, 60), 25, (0.85, 0.92), 1, 1.5, 45, 0.75)
DYNAMICS = Work("gmx", 2, 120, (78, 93), 4, (0.02, 0.07), 1, 8, 3, 0.7)
TRYING = Work("python3", 2, 6, (20, 75), 20, (0.1, 0.4), 1, 2, 15, 0.7)
KINDS = (TRAINING, TUNING, SERVING, DYNAMICS, TRYING)
NOTEBOOK = Work("ipykernel_launcher", 0, 600, (0, 0), 0, (0.2, 0.6), 1, 0.02, 12, 0)
"""Forgotten: memory that nobody works with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job; times in s of the night, `util` in percent, `memory` of 1, `pid` the first of its processes.

    `effort` is how much of its kind's CPU cores and of the host's memory it takes, of 1.
    """

    work: Work
    user: str
    pid: int
    started: float
    ended: float
    util: float
    memory: float
    effort: float

    def util_at(self, elapsed: float, phase: float) -> float:
        """Return how busy it keeps a GPU, percent; `phase` tells GPUs of one job apart."""
        age = elapsed - self.started
        if age < LOADING_SECONDS or not self.util:
            return 0.0
        wave = 0.7 * math.sin(age / 41 + phase) + 0.3 * math.sin(age / 6.1 + 2 * phase)
        if age % CHECKPOINT_EVERY_SECONDS < CHECKPOINT_SECONDS and self.work is TRAINING:
            return 8 + 4 * wave  # it writes a checkpoint
        return min(100.0, max(0.0, self.util + self.work.swing * wave))

    def memory_at(self, elapsed: float) -> float:
        """Return how much of a GPU's memory it takes, of 1."""
        return self.memory * min(1.0, 0.1 + (elapsed - self.started) / LOADING_SECONDS)


class Turns:
    """The jobs on GPUs that are given out together, one after the other with pauses. Times never go back.

    Args:
        random: decides everything.
        down: from when until when the host is down (s of the night): it kills what runs, and nothing begins; or None.
        forgotten: whether a notebook sits there all night.
        before_seconds: how long before the night the work begins.

    Attributes:
        job: that of the moment last advanced to.
        heat: how warm the work has made its GPUs by then, of 1.
        loads: how many CPU cores it kept busy for each GPU in the 1, 5 and 15 minutes before.
    """

    def __init__(
        self,
        random: Random,
        *,
        down: tuple[float, float] | None,
        forgotten: bool,
        before_seconds: float = BEFORE_SECONDS,
    ) -> None:
        self._random = random
        self._down_at, self._up_at = down or (math.inf, math.inf)
        self._settled = [0.0] * (1 + len(LOAD_AVG_SECONDS))  # heat and loads when this turn began, of 1
        self._began = -before_seconds
        self.job: Job | None = None
        self.heat, *self.loads = self._settled
        self._notebook: Job | None = None
        if forgotten:
            self._notebook = self._job(NOTEBOOK, started=-random.uniform(1, 6) * 3600, minutes=math.inf)
            self._ends = self._notebook.started
        else:
            self._ends = self._began + random.uniform(0, 1800)

    def advance(self, elapsed: float) -> Job | None:
        """Go on to a moment; return its job."""
        while elapsed >= self._ends:
            self._settled = self._relaxed(self._ends)
            self._began = self._ends
            if self.job is None:
                self._start()
            else:
                pause = self._random.expovariate((BUSY_SHARE / (1 - BUSY_SHARE)) / (self.job.ended - self.job.started))
                self._ends = self._began + max(20.0, pause)
                if self._down_at <= self._ends < self._up_at:
                    self._ends = self._up_at + pause
                self.job = None
        self.heat, *self.loads = self._relaxed(elapsed)
        return self.job

    def _relaxed(self, elapsed: float) -> list[float]:
        """Return what `_settled` has become: each value nears that of the job, the slower the longer its time."""
        job, passed = self.job, elapsed - self._began
        heat, cores = (job.work.draw * job.util / 100, job.effort * job.work.cores) if job else (0.0, 0.0)
        return [
            wanted + (before - wanted) * math.exp(-passed / slow)
            for before, wanted, slow in zip(
                self._settled, (heat, cores, cores, cores), (HEAT_SECONDS, *LOAD_AVG_SECONDS), strict=True
            )
        ]

    def _start(self) -> None:
        if self._notebook is None:
            (kind,) = self._random.choices(KINDS, [each.weight for each in KINDS])
            minutes = kind.minutes * math.exp(self._random.gauss(0, 0.6))
            self.job = self._job(kind, started=self._began, minutes=minutes)
        else:
            self.job = self._notebook
        self._ends = self.job.ended

    def _job(self, work: Work, *, started: float, minutes: float) -> Job:
        ended = started + 60 * minutes
        if started < self._down_at < ended:
            ended = self._down_at
        return Job(
            work=work,
            user=self._random.choice(USERS),
            pid=self._random.randrange(3_000, 4_000_000),
            started=started,
            ended=ended,
            util=self._random.uniform(*work.util),
            memory=self._random.uniform(*work.memory),
            effort=self._random.uniform(0.4, 1.6),
        )
