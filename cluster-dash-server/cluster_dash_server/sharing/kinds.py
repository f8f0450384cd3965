"""Where the live view is: the section `[live]`, and the engine that it names, imported when it is."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from cluster_dash_server.sharing.redis import RedisEngine

SCHEMES = ("redis", "rediss", "redis+sentinel")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """The section `[live]`."""

    kind: str = field(
        default="memory",
        metadata={
            "help": "where the live view is: memory, of the one process that serves; redis, shared by several replicas "
            "(an extra)",
            "choices": ("memory", "redis"),
        },
    )
    url: str | None = field(
        default=None,
        repr=False,
        metadata={
            "help": "redis: as redis://HOST:6379/0, rediss:// by TLS, redis+sentinel://HOST:26379,HOST/MASTER/0; "
            "a number of its own for each cluster",
            "secret": True,
        },
    )
    url_file: str | None = field(default=None, metadata={"help": "redis: a file that holds the url", "of": "url"})
    tick_seconds: float = field(
        default=0.2,
        metadata={"help": "redis: how often replicas exchange what has changed", "minimum": 0.02, "maximum": 5},
    )
    grace_seconds: float = field(
        default=60,
        metadata={
            "help": "redis: for how long posts are taken while it is away; then they are answered 503 and moles keep "
            "them",
            "minimum": 0,
            "maximum": 3600,
        },
    )

    @property
    def is_shared(self) -> bool:
        """Whether several replicas share it."""
        return self.kind != "memory"


def problem(settings: LiveSettings) -> str | None:
    """Say what is wrong with the settings, beginning with the key; None: they can be used."""
    if not settings.is_shared:
        return None
    if settings.url is None:
        return "url: is missing: expected such as redis://127.0.0.1:6379/0"
    try:
        scheme = urlsplit(settings.url).scheme
    except ValueError:
        scheme = ""
    if scheme not in SCHEMES:
        return f"url: expected {', '.join(f'{each}://' for each in SCHEMES)}"
    if find_spec("redis") is None:
        return "kind: redis-py is not installed: pip install 'cluster-dash-server[redis]'"
    try:
        engine_of(settings)
    except ValueError as error:
        return f"url: {error}"
    return None


def engine_of(settings: LiveSettings) -> "RedisEngine":
    """Return the engine of the settings; nothing is connected yet.

    Raises:
        ValueError: they cannot be used.
    """
    from cluster_dash_server.sharing.redis import RedisEngine  # what it needs is an extra

    return RedisEngine(settings.url or "")
