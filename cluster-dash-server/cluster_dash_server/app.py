"""`create_app`: HTTP before the parts of a server, each page with what its viewer may know of them."""

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import click
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from cluster_dash_server import __version__
from cluster_dash_server.access.auth import Auth, Passcode, Proxies, names_loopback
from cluster_dash_server.access.viewers import current, scope_of
from cluster_dash_server.alerts.standing import marks
from cluster_dash_server.front import Front
from cluster_dash_server.groups import Groups
from cluster_dash_server.parts import Start
from cluster_dash_server.prometheus.metrics import Metrics
from cluster_dash_server.received import Reception
from cluster_dash_server.relaying.centre import Centre
from cluster_dash_server.relaying.relay import Relay
from cluster_dash_server.settings import ConfigError, Settings
from cluster_dash_server.site import load_settings
from cluster_dash_server.web import alerts as alert_pages
from cluster_dash_server.web import (
    api,
    charts,
    edge,
    first_history,
    first_live,
    frame,
    lists,
    metrics,
    needed,
    openapi,
    packing,
    pages,
    past_parts,
    post,
    relay,
    sign_in,
    slurm_lists,
    status,
    wall,
    waste,
    who_asks,
)
from cluster_dash_server.web import digest as digest_page
from cluster_dash_server.web import history as history_pages
from cluster_dash_server.web import slurm as slurm_pages
from cluster_dash_server.web import waiting as waiting_page
from cluster_dash_server.web.answers import failure, html
from cluster_dash_server.web.lazy_rule import LazyRule
from cluster_dash_server.web.parameters import QueryError
from cluster_dash_server.web.past import Past

VERSION = __version__


def create_app(settings: Settings | None = None, clock: Callable[[], float] = time.time) -> Flask:
    """Build the server.

    Args:
        settings: all settings; None: this site's. Who gives them calls `app.extensions["start"]` before it serves.
        clock: Unix s.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    is_loaded_by_others = settings is None  # flask, waitress-serve: nobody tells the application that it serves
    settings = load_settings() if settings is None else settings
    if settings.relay.to is not None:
        return _relay(settings, settings.relay.to, clock)
    front = Front(settings, clock)
    app = pages_of(front)
    app.wsgi_app = front.edge  # type: ignore[method-assign]
    if is_loaded_by_others:
        app.wsgi_app = _started_by_a_request(front.edge, front.parts.start)  # type: ignore[method-assign]
    return app


def pages_of(front: Front) -> Flask:
    """Build the pages, and all else that Flask answers, and put the front of a server before them."""
    parts, settings = front.parts, front.parts.settings
    app = Flask(__name__, static_folder=None)
    app.url_rule_class = LazyRule
    app.url_map.merge_slashes = False  # its redirect names the Host header, which anybody can forge
    app.config["MAX_CONTENT_LENGTH"] = settings.limits.body_bytes
    app.extensions |= {
        "start": parts.start,
        "control": parts.control,
        "tokens": parts.tokens,
        "history": parts.history,
        "book": parts.book,
        "errands": parts.errands,
        "replica": parts.replica,
    }
    if app.debug:
        _keep_the_debugger_at_home()
    app.register_blueprint(post.blueprint(*front.posts))
    app.register_blueprint(post.enrolment(parts.auth, parts.clock))
    _show(app, front)
    _guard(app, front)
    _answer_errors(app)
    front.put_before(app.wsgi_app)
    return app


def _show(app: Flask, front: Front) -> None:
    """Add all that viewers ask for, each shown what they may know."""
    parts, settings = front.parts, front.parts.settings
    zone, clock, view_clock, book = parts.zone, parts.clock, parts.view_clock, parts.book.book
    cluster, slurm, history = front.cluster, front.slurm, front.history
    past = Past(cluster, history, history, clock, zone, alerts=lambda begin, end: marks(book, begin, end))
    reached = _Reached()

    @app.before_request
    def remember_who_comes() -> None:
        reached.from_afar = reached.from_afar or not edge.caller_of(request.environ).here

    site = frame.Site(
        name=settings.site.name,
        version=VERSION,
        public_url=settings.server.public_url,
        notices=lambda: parts.notices(from_afar=reached.from_afar),
        keeps_history=lambda: parts.history.keeps,
    )
    about = status.About(
        cluster=cluster,
        live=front.live,
        reception=parts.reception,
        viewers=front.viewers,
        limits=settings.limits,
        began_at=clock(),
        version=VERSION,
        shared=None if parts.replica is None else parts.replica.status,
    )
    figures = Metrics(
        cluster,
        parts.counts,
        parts.xids,
        slurm,
        lambda: parts.history.trouble,
        version=VERSION,
        users=settings.metrics.users,
        receivers_failing=lambda: len(parts.telling.failing()),
    )
    frames = wall.Frames(policy=edge.SECURITY_HEADERS["Content-Security-Policy"], embed_from=settings.site.embed_from)
    for blueprint in (
        frame.blueprint(site, lambda: len(cluster), view_clock),
        # the live view
        pages.blueprint(cluster, parts.events, view_clock, site.name, past.view_at),
        api.blueprint(cluster, front.narrowed, front.looks, view_clock, VERSION, parts.failing),
        first_live.blueprint(cluster, view_clock),
        lists.blueprint(cluster, parts.events, parts.history, view_clock, zone),
        slurm_pages.blueprint(slurm, cluster, view_clock, settings.site.name),
        slurm_lists.blueprint(slurm, cluster, view_clock),
        charts.blueprint(cluster, view_clock),
        wall.blueprint(cluster, view_clock, settings.site.name, frames),
        # the past
        past_parts.blueprint(past),
        history_pages.blueprint(past, settings.site.name),
        first_history.blueprint(cluster, history, clock),
        waste.blueprint(past, Groups(slurm.pictures, clock).of, settings.site.name),
        digest_page.blueprint(parts.nights(cluster, history, slurm, current.get), clock),
        # people are told
        alert_pages.blueprint(book, clock, zone, parts.watch.coming),
        waiting_page.blueprint(parts.waiting, clock, Proxies(settings.server.trusted_proxies), zone),
        needed.blueprint(parts.owners),
        # the server itself, and other programs
        status.blueprint(about, view_clock),
        openapi.blueprint(VERSION, settings.server.base_path),
        metrics.blueprint(
            figures,
            cluster,
            parts.events,
            slurm,
            clock,
            hostname_label=settings.metrics.hostname_label,
            slurm_family=settings.metrics.slurm_family,
            users=settings.metrics.users,
            public_url=settings.server.public_url,
        ),
    ):
        app.register_blueprint(blueprint)


def _guard(app: Flask, front: Front) -> None:
    """Stand before every route, and name the headers that browsers heed."""
    settings = front.parts.settings
    asked_of = who_asks.reader(front.gate, settings.viewers.proxy_header, csrf=sign_in.handed_back)
    app.register_blueprint(sign_in.blueprint(front.gate, front.provider, settings.server.public_url))
    sign_in.stand_guard(app, front.gate, asked_of)
    _refuse_routes_without_scope(app)
    app.after_request(packing.packed)

    @app.after_request
    def add_security_headers(response: Response) -> Response:
        may_be_framed = "Content-Security-Policy" in response.headers  # its own says by whom
        for name, value in edge.SECURITY_HEADERS.items():
            if not (may_be_framed and name == "X-Frame-Options"):
                response.headers.setdefault(name, value)
        return response


def _answer_errors(app: Flask) -> None:
    """Answer each error in one shape: JSON for programs, a page for people."""

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        status = error.code or 500
        text = f"request: {error.name.lower()}"
        if _is_for_machines():
            answer = failure(status, text)
            answer.headers.extend(header for header in error.get_headers() if header[0] == "Allow")
            return answer
        return html("error.html", status, title=error.name, text=error.description or text)

    @app.errorhandler(QueryError)
    def wrong_query(error: QueryError) -> Response:
        if _is_for_machines():
            return failure(400, str(error))
        return html("error.html", 400, title="This address cannot be answered", text=str(error))

    @app.errorhandler(Exception)
    def own_error(error: Exception) -> Response:
        text = edge.numbered(error, request.method, request.path)
        if _is_for_machines():
            return failure(500, text)
        return html("error.html", 500, title="Error", text=text)


def _relay(settings: Settings, to: str, clock: Callable[[], float]) -> Flask:
    """Build a relay, which has no data folder and no viewers.

    Raises:
        ConfigError: the CA file cannot be used.
    """
    try:
        live, aside = (Centre(to, ca_file=settings.relay.ca_file) for _ in range(2))
    except OSError as error:
        raise ConfigError(f"relay.ca_file: {settings.relay.ca_file}: {error.strerror or error}") from None
    allows_plaintext = settings.ingest.allow_plaintext_tokens
    # a centre on this machine is told that no token came here in the clear, or goes from here; else it sees for itself
    is_here = to.startswith("http://") and names_loopback(urlsplit(to).netloc)
    way = {"X-Forwarded-Proto": "https"} if is_here and not allows_plaintext else {}
    passing = relay.Passing(
        relay=Relay(
            settings=settings.relay,
            limits=settings.limits,
            live=live,
            aside=aside,
            auth=Auth(
                Passcode(None), proxies=Proxies(settings.server.trusted_proxies), allows_plaintext=allows_plaintext
            ),
            headers={"User-Agent": f"cluster-dash-relay/{VERSION}", **way},
        ),
        to=to,
        name=settings.site.name,
        version=VERSION,
        base_path=settings.server.base_path,
        trusted_hosts=settings.viewers.trusted_hosts,
        reception=Reception(clock),
        began_at=clock(),
        clock=clock,
    )
    return relay.application(passing, edge.SECURITY_HEADERS.items())


def _started_by_a_request(serve: Callable[..., Any], start: Start) -> Callable[..., Any]:
    """Start with the first request, where nobody says that it serves."""

    def served(*request: Any) -> Any:
        start()
        return serve(*request)

    return served


def _keep_the_debugger_at_home() -> None:
    """Refuse `flask run --debug --host=…`: who reaches Werkzeug's debugger runs code of their own here."""
    command = click.get_current_context(silent=True)
    if command is None or command.params.get("debugger") is False:
        return
    host = command.params.get("host")
    if host is not None and not names_loopback(host):
        raise click.UsageError(f"--debug offers a debugger to everybody who reaches {host}: use --host 127.0.0.1")


class _Reached:
    """Whether anybody but this machine has come here yet: then the pages say what is open."""

    from_afar = False


def _is_for_machines() -> bool:
    return request.method not in ("GET", "HEAD") or request.path.startswith(("/api/", "/data-out/"))


def _refuse_routes_without_scope(app: Flask) -> None:
    """Fail at start where a route does not say who may use it."""
    for rule in app.url_map.iter_rules():
        if scope_of(app.view_functions[rule.endpoint]) is None:
            raise RuntimeError(f"route {rule.rule} declares no scope: see viewers.needs")
