"""The sections `[history]` and `[privacy]`: what keeps the past, where, for how long, and whose names."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySettings:
    """The section `[history]`."""

    kind: str = field(
        default="sqlite",
        metadata={
            "help": "what keeps history: sqlite, a file in the data folder; remote, an engine such as VictoriaMetrics "
            "or Prometheus (an extra); or none",
            "choices": ("sqlite", "remote", "none"),
        },
    )
    rows_days: float = field(
        default=7, metadata={"help": "days of figures as they came; duplicates are known for as long", "minimum": 0.1}
    )
    minutes_days: float = field(default=90, metadata={"help": "days of minutes: least, mean, most", "minimum": 1})
    hours_days: float = field(
        default=730,
        metadata={"help": "days of hours, and of events; those of the cluster are kept for ever", "minimum": 1},
    )
    max_gb: float = field(
        default=20,
        metadata={
            "help": "2^30 bytes that the file may take; the oldest figures are let go earlier for it",
            "minimum": 0.01,
        },
    )
    write_url: str | None = field(
        default=None, metadata={"help": "remote: where the engine takes remote writes, as http://vm:8428/api/v1/write"}
    )
    read_url: str | None = field(
        default=None,
        metadata={
            "help": "remote: the address below which it has /api/v1/query_range; else write_url less /api/v1/write"
        },
    )
    cluster: str = field(
        default="cluster",
        metadata={"help": "remote: the label `cluster` of all that is written: one engine may hold many"},
    )
    headers: tuple[str, ...] = field(
        default=(),
        repr=False,
        metadata={"help": "remote: sent with each request, as X-Scope-OrgID: lab", "secret": True},
    )
    bearer_file: str | None = field(default=None, metadata={"help": "remote: a file that holds a token for it"})
    flush_seconds: float = field(
        default=10, metadata={"help": "remote: how long figures wait for others", "minimum": 0.1, "maximum": 60}
    )
    settle_seconds: float = field(
        default=15,
        metadata={
            "help": "remote: how long the engine must live on after its yes before figures are durable; of Prometheus "
            "and Mimir 0 is right",
            "minimum": 0,
            "maximum": 600,
        },
    )
    window_seconds: float | None = field(
        default=None,
        metadata={
            "help": "remote: how old a figure may be that the engine takes, as its out_of_order_time_window; else of "
            "any age, as VictoriaMetrics",
            "minimum": 60,
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySettings:
    """The section `[privacy]`."""

    user_days: float = field(
        default=400,
        metadata={"help": "days for which is kept who had which GPU, and GPU-hours of each user", "minimum": 1},
    )
    user_names: str = field(
        default="full",
        metadata={
            "help": "full: shown to who may look; signed_in: only to who has signed in, others see pseudonyms; "
            "pseudonym: never kept nor shown, from the first post on",
            "choices": ("full", "signed_in", "pseudonym"),
        },
    )
    programs: bool = field(
        default=True, metadata={"help": "whether names of programs, containers and jobs are kept and shown"}
    )
