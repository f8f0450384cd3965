"""What stands before the pages of a server: posts and the live view are answered from its start, without Flask."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, cast

from cluster_dash_server import privacy, viewer_access
from cluster_dash_server.access.viewers import Gate
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.ingest import Answer
from cluster_dash_server.lasting import made_to_last
from cluster_dash_server.live import Live
from cluster_dash_server.narrowed import Narrowed
from cluster_dash_server.parts import Parts
from cluster_dash_server.settings import ConfigError, Settings
from cluster_dash_server.web import hot, waitress_limits, who_asks
from cluster_dash_server.web.edge import SECURITY_HEADERS, Edge, Reply, plain

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from cluster_dash_server.ledger.access import SignedSessions
    from cluster_dash_server.ledger.commons import Commons
    from cluster_dash_server.sharing.replica import Replica

log = logging.getLogger(__name__)


class Front:
    """A server as a WSGI application.

    Args:
        settings: all settings, of a server that is no relay.
        clock: Unix s.

    Attributes:
        parts: what it stands before.
        gate: who may look.
        provider: where people sign in; None: not at a provider.
        posts: the ways of posts.
        looks: the way to the live view.
        cluster: the live view as the viewer may know it; so are the next four.
        live: the same as bytes that are ready to send.
        narrowed: the same under a filter.
        slurm: what Slurm says.
        history: the past.
        viewers: who looks.
        edge: what answers here, and hands all else on.

    Raises:
        ConfigError: a setting that cannot be used.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self.parts = parts = Parts(settings, clock)
        veiled = privacy.veiled(parts.cluster, parts.veil_for_some)
        life = secrets.token_hex(4)
        lives = Live(parts.cluster, life), Live(veiled, f"{life}v")
        if parts.replica is not None:
            lives = _shared_lives(lives, (parts.cluster, veiled), parts.replica)
        self.cluster = privacy.by_viewer(parts.cluster, veiled)
        self.live = privacy.by_viewer(*lives)
        self.narrowed = privacy.by_viewer(Narrowed(lives[0], life), Narrowed(lives[1], f"{life}v"))
        self.slurm = privacy.by_viewer(parts.slurm, privacy.veiled_slurm(parts.slurm, parts.veil_for_some))
        self.history = privacy.by_viewer(parts.history, privacy.veiled_past(parts.history, parts.veil_for_some))
        self.viewers = hot.Viewers()
        self.gate = _gate(parts)
        self.provider = viewer_access.provider(
            settings, parts.clock, None if parts.commons is None else parts.commons.access
        )
        self.posts = hot.ways(parts.ingest, self._note)
        self.looks = hot.live_way(self.live, self.narrowed, parts.view_clock, self.viewers.note)
        asked_of = who_asks.reader(self.gate, settings.viewers.proxy_header)
        self.edge = Edge(
            self._pages,
            ways=(*self.posts, self.looks, hot.ALIVE),
            headers=SECURITY_HEADERS.items(),
            admit=lambda environ, scope: self.gate.admit(asked_of(environ), scope),
            base_path=settings.server.base_path,
            trusted_hosts=settings.viewers.trusted_hosts,
            admit_at_once=lambda environ, scope: self.gate.admit_at_once(asked_of(environ), scope),
        )
        self._behind: WSGIApplication | None = None
        self._is_loaded = threading.Event()
        waitress_limits.apply(settings.limits.body_bytes)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer a request."""
        return self.edge(environ, start_response)

    def ready(self, environ: "WSGIEnvironment") -> Reply | None:
        """Return an answer that lies ready; see `Edge.ready`."""
        return self.edge.ready(environ)

    def put_before(self, pages: "WSGIApplication") -> None:
        """Hand on to these pages from now on."""
        self._behind = pages
        self._is_loaded.set()

    def load(self, build: Callable[[], object]) -> None:
        """Have a thread build pages and put this before them; who asks for one meanwhile waits."""
        threading.Thread(target=self._load, args=(build,), name="pages", daemon=True).start()

    def _load(self, build: Callable[[], object]) -> None:
        try:
            with made_to_last():
                build()
        except Exception as error:  # posts are taken nevertheless, and whoever asks for a page is told
            log.critical("the pages cannot be built", exc_info=error)
        finally:
            self._is_loaded.set()

    def _pages(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        self._is_loaded.wait()
        if self._behind is None:
            text = "an error of the server: its pages could not be built; its log says why"
            return plain(start_response, "500 Internal Server Error", text)
        return self._behind(environ, start_response)

    def _note(self, answer: Answer) -> None:
        self.parts.counts.count(answer)
        self.parts.reception.note(answer)


def _gate(parts: Parts) -> Gate:
    """Build what decides who may look.

    Raises:
        ConfigError: see `viewer_access.gate`, `_sessions`.
    """
    sessions = None if parts.commons is None else _sessions(parts.settings, parts.commons)
    return viewer_access.gate(parts.settings, parts.tokens, parts.clock, sessions)


def _sessions(settings: Settings, commons: "Commons") -> "tuple[SignedSessions, bytes] | None":
    """Return who has signed in at any replica, and the key that pages are tied to; None: nobody says who they are.

    Raises:
        ConfigError: there is no key, and none can be made now.
    """
    if settings.viewers.mode == "open":
        return None
    try:
        return commons.sessions(settings.viewers.session_hours * 3600)
    except OSError as error:
        raise ConfigError(f"viewers.mode: the key of sessions cannot be kept: {error}") from None


def _shared_lives(lives: tuple[Live, Live], clusters: tuple[Cluster, Cluster], replica: "Replica") -> tuple[Live, Live]:
    """Return the live view, and the veiled one, under versions that all replicas share."""
    from cluster_dash_server.sharing.view import SharedLive

    named, veiled = (
        SharedLive(live, cluster, replica, name) for live, cluster, name in zip(lives, clusters, ("", "v"), strict=True)
    )
    return cast(Live, named), cast(Live, veiled)
