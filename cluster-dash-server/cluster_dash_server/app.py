"""`create_app`: reads the site's files, builds the parts, hands each what it uses."""

import difflib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import click
from flask import Config, Flask, Response, render_template, request
from werkzeug.exceptions import HTTPException

from cluster_dash_server import __version__, looking, privacy, restart, when
from cluster_dash_server import settings as settings_of_site
from cluster_dash_server.access.auth import Auth, Limiter, Passcode, Proxies, names_loopback
from cluster_dash_server.access.tokens import TokenError, TokenFile, Tokens, TokenStore
from cluster_dash_server.access.viewers import Viewer, current, scope_of
from cluster_dash_server.alerts import disks, rules
from cluster_dash_server.alerts.commands import obey_maintenance, obey_reload
from cluster_dash_server.alerts.watch import Watch
from cluster_dash_server.cluster import Cluster, KnownHost
from cluster_dash_server.control import Control, data_folder
from cluster_dash_server.errands import Errands, Morning
from cluster_dash_server.events import EventLog
from cluster_dash_server.groups import Groups
from cluster_dash_server.history.kept import History
from cluster_dash_server.history.kept import Shared as SharedHistory
from cluster_dash_server.history.settled import OwnSettled
from cluster_dash_server.ingest import Answer, Ingest
from cluster_dash_server.ledger.kept import KeptBook, shared_of
from cluster_dash_server.ledger.line import LineFile
from cluster_dash_server.live import Live
from cluster_dash_server.narrowed import Narrowed
from cluster_dash_server.nights import Nights, obey_digest
from cluster_dash_server.notices.receivers import PERSON, minute_of_day
from cluster_dash_server.notices.telling import Telling, without_addresses
from cluster_dash_server.owners import KEY_FILE as LINKS_KEY
from cluster_dash_server.owners import Owners
from cluster_dash_server.prometheus.metrics import Metrics, PostCounts, XidCounts
from cluster_dash_server.received import Reception
from cluster_dash_server.relaying.centre import Centre
from cluster_dash_server.relaying.relay import Relay
from cluster_dash_server.settings import ConfigError, Reading, Settings
from cluster_dash_server.sharing import kinds
from cluster_dash_server.slurm import Slurm
from cluster_dash_server.snapshot import Seen, checker
from cluster_dash_server.store import StoreError
from cluster_dash_server.summary import sentence_of
from cluster_dash_server.waiting import Waiting
from cluster_dash_server.web import alerts as alert_pages
from cluster_dash_server.web import (
    api,
    charts,
    edge,
    first_history,
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
    status,
    waitress_limits,
    wall,
    waste,
)
from cluster_dash_server.web import digest as digest_page
from cluster_dash_server.web import history as history_pages
from cluster_dash_server.web import slurm as slurm_pages
from cluster_dash_server.web import waiting as waiting_page
from cluster_dash_server.web.history import Past
from cluster_dash_server.web.lazy_rule import LazyRule
from cluster_dash_server.web.views import QueryError

if TYPE_CHECKING:
    from cluster_dash_server.ledger.access import SignedSessions
    from cluster_dash_server.ledger.commons import Commons
    from cluster_dash_server.sharing.away import Graceful
    from cluster_dash_server.sharing.replica import Replica

VERSION = __version__
WELL_SECONDS = 300.0
"""Alerts are evaluated for as long as their last round is no longer ago; then nobody is told that all is well."""
REFUSED_SECONDS = 360.0
"""A post that was refused counts as trouble of this server for so long: moles come again within it."""

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "connect-src 'self'; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}


def load_settings(file: Path | None = None) -> Settings:
    """Read all settings of this site: its `config.py`, `server.toml`, the environment.

    Raises:
        ConfigError: see `settings.load`.
    """
    return read_settings(file).settings


def read_settings(file: Path | None = None) -> Reading:
    """Read all settings of this site, and where each comes from; its rules of alerts are looked at, too.

    Raises:
        ConfigError: see `settings.read`; a rule that cannot be used.
    """
    site_file, site = _config_py()
    reading = settings_of_site.read(file, site=site, site_file=site_file)
    try:
        _rules(reading.settings)
    except rules.RulesError as error:
        raise ConfigError(str(error)) from None
    return reading


def _rules(settings: Settings) -> Sequence[rules.Rule]:
    """Read the rules of alerts that are on.

    Raises:
        RulesError: one that cannot be used.
    """
    file = None if settings.alerts.rules_file is None else Path(settings.alerts.rules_file)
    receivers = settings.alerts.receivers
    known = [rule.name for rule in rules.read(file)]
    for receiver in receivers:
        for name in receiver.rules:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                mend = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
                raise rules.RulesError(f"alerts.receivers.{receiver.name}.rules: no rule is called {name}, {mend}")
    return rules.load(file, receivers=[receiver.name for receiver in receivers])


def _config_py() -> tuple[str, dict[str, object]]:
    """Run the site's `config.py` (Flask's own way): the working directory's, else the package folder's.

    Returns:
        where it is, and its names in capitals; none where there is no such file.

    Raises:
        ConfigError: it is there and cannot be run.
    """
    for file in (Path.cwd() / "config.py", Path(__file__).with_name("config.py")):
        try:
            # a working directory may hold anybody's config.py: ours names the passcode
            if "PASSCODE" not in file.read_text(encoding="utf-8", errors="replace"):
                continue
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
        config = Config(str(file.parent))
        try:
            config.from_pyfile(file.name)
        except Exception as error:  # it is the site's own code: whatever it raises, the site must read where
            raise ConfigError(f"{file}: {type(error).__name__}: {error}") from error
        return str(file), dict(config)
    return "", {}


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
    folder = data_folder(settings.server.data, os.environ)
    engine_clock, settled = None, None
    if settings.live.is_shared:
        from cluster_dash_server.sharing.clock import EngineClock  # only replicas need it
        from cluster_dash_server.sharing.settled import SharedSettled

        clock = engine_clock = EngineClock(clock)
        settled = SharedSettled()
    kept_book = KeptBook(folder, clock, settings.privacy.user_days, shared_of(settings.ledger))
    commons = _commons(settings, folder, clock)
    history = History(
        folder,
        settings=settings.history,
        privacy=settings.privacy,
        clock=clock,
        last_seen=lambda hosts: restart.newest(whole.known(hosts), all_of_slurm),
        shared=None
        if commons is None
        else SharedHistory(
            database=commons.database,
            leads=kept_book.leads,
            settled=settled or OwnSettled(),
            heard=lambda found: events.hear(found),
        ),
    )
    events = EventLog(settings.states, ledger=history)
    xids, counts = XidCounts(), PostCounts()

    def witness(seen: Seen, before: KnownHost | None, after: KnownHost | None) -> None:
        events.witness(seen, before, after)
        xids.witness(seen, before, after)

    whole = cluster = Cluster(settings.states, settings.limits.max_hosts, witness, settings.limits.kept_bytes)
    passcode = Passcode(settings.ingest.passcode)
    tokens = _tokens(TokenFile(folder), clock) if commons is None else _shared_tokens(commons, clock)
    key_of = partial(privacy.kept_key, folder) if commons is None else commons.keys.key
    auth = Auth(
        passcode,
        tokens,
        proxies=Proxies(settings.server.trusted_proxies),
        limiter=Limiter(settings.limits.failures_per_minute),
        requires_tokens=settings.ingest.require_tokens,
        allows_plaintext=settings.ingest.allow_plaintext_tokens,
    )
    all_of_slurm = slurm = Slurm(settings.slurm, cluster.place)
    slurm.known_by(cluster.knows)
    veil, veil_for_some = looking.veils(settings, partial(key_of, privacy.KEY_FILE))
    ingest = Ingest(
        cluster=cluster,
        auth=auth,
        check=checker(),
        limits=settings.limits,
        clock=clock,
        slurm=slurm,
        history=history,
        veil=None if veil is None else veil.snapshot,
    )
    control = Control(folder, cluster, events, clock, tokens, history, slurm)
    replica = None
    if engine_clock is not None:
        from cluster_dash_server.sharing.replica import Replica

        replica = Replica(
            kinds.engine_of(settings.live),
            cluster,
            slurm,
            engine_clock,
            tick_seconds=settings.live.tick_seconds,
            grace_seconds=settings.live.grace_seconds,
            settled=settled,
        )
        replica.forgets.append(events.forget)
        replica.errands["forget_user"] = lambda user: control.forget_user(user, begin=True)
        control.forgets["the live view of other replicas"] = partial(replica.tell, "forget_user")
    errands = Errands({}, clock, kept_book.leads)
    start = _Start(history, kept_book, cluster, events, control, slurm, errands, clock)
    if replica is not None:
        start.before_posts.append(replica.start)
    if commons is not None:
        start.before_posts.append(commons.access.start)
    app = Flask(__name__, static_folder=None)
    app.url_rule_class = LazyRule
    app.url_map.merge_slashes = False  # its redirect names the Host header, which anybody can forge
    app.extensions["control"] = control
    app.extensions["tokens"] = tokens
    app.extensions["start"] = start
    app.extensions["history"] = history
    app.extensions["book"] = kept_book
    app.extensions["errands"] = errands
    app.extensions["replica"] = replica
    if app.debug:
        _keep_the_debugger_at_home()
    app.config["MAX_CONTENT_LENGTH"] = settings.limits.body_bytes
    reached = _Reached()

    def notices() -> tuple[str, ...]:
        own = () if settings.site.notice is None else (settings.site.notice,)
        if history.loss is not None:
            own = (*own, f"A part of history is lost: {history.loss}.")
        if start.is_done and history.trouble is not None:
            own = (*own, f"History is not written: {history.trouble}. The live view goes on.")
        if replica is not None and replica.notice is not None:
            own = (*own, f"{replica.notice}: {replica.trouble}.")
        if kept_book.is_open and kept_book.trouble is not None:
            own = (*own, f"Alerts are neither kept nor evaluated now, and nobody is told of any: {kept_book.trouble}.")
        else:
            if kept_book.trouble is not None and settings.alerts.receivers:
                own = (*own, f"No alerts are kept, and nobody is told of any: {kept_book.trouble}.")
            if watch.trouble is not None:
                own = (*own, f"Alerts are not evaluated: {watch.trouble}.")
            own = (*own, *telling.notices())
        is_open = gate.rules.mode == "open"
        return (*own, *auth.notices(clock(), from_afar=reached.from_afar, is_open=is_open))

    def failing() -> Iterator[api.Failing]:
        is_one_of_several = replica is not None or kept_book.shared is not None
        if history.trouble is not None:
            is_file = settings.history.kind != "remote"
            yield api.Failing("history", history.trouble, is_ours=is_file or not (is_one_of_several and history.keeps))
        if replica is not None and replica.trouble is not None:
            yield api.Failing("live view", replica.trouble, is_ours=False)
        if kept_book.is_open and kept_book.trouble is not None:  # their database is away, from all replicas
            yield api.Failing("alerts", kept_book.trouble, is_ours=False)
            return
        if watch.trouble is not None:
            yield api.Failing("alerts", watch.trouble, is_ours=True)
        if telling.trouble is not None:
            yield api.Failing("notices", telling.trouble, is_ours=False)

    site = pages.Site(name=settings.site.name, version=VERSION, notices=notices, keeps_history=lambda: history.keeps)
    reception, viewers = Reception(clock), status.Viewers()

    def note(answer: Answer) -> None:
        counts.count(answer)
        reception.note(answer)

    posts = post.ways(_graceful(ingest, history, replica) if replica or commons else ingest, note)
    life = secrets.token_hex(4)
    # what follows is for viewers: each is shown what they may know, of the moment for which the live view speaks
    view_clock = clock if engine_clock is None else engine_clock.of_view
    veiled = privacy.veiled(cluster, veil_for_some)
    lives = Live(cluster, life), Live(veiled, f"{life}v")
    if replica is not None:
        lives = _shared_lives(lives, (cluster, veiled), replica)
    narrowed = privacy.by_viewer(Narrowed(lives[0], life), Narrowed(lives[1], f"{life}v"))
    live = privacy.by_viewer(*lives)
    cluster = privacy.by_viewer(cluster, veiled)
    slurm = privacy.by_viewer(slurm, privacy.veiled_slurm(slurm, veil_for_some))
    past_of_all = privacy.by_viewer(history, privacy.veiled_past(history, veil_for_some))
    looks = api.way(live, narrowed, view_clock, viewers.note)
    app.register_blueprint(post.blueprint(*posts))
    app.register_blueprint(post.enrolment(auth, clock))
    app.register_blueprint(api.blueprint(cluster, narrowed, looks, view_clock, VERSION, failing))
    zone = when.zone(settings.site.timezone)
    app.register_blueprint(lists.blueprint(cluster, events, history, view_clock, zone))
    past = Past(
        cluster,
        past_of_all,
        past_of_all,
        clock,
        zone,
        alerts=lambda begin, end: alert_pages.marks(kept_book.book, begin, end),
    )

    def nights(of: Cluster, past_of: History, slurm_of: Slurm, viewer: Callable[[], Viewer | None]) -> Nights:
        return Nights(
            store=past_of,
            ledger=past_of,
            newest=lambda begin, end: events.newest(begin=begin, end=end),
            cluster=of,
            pictures=slurm_of.pictures,
            zone=zone,
            firing=lambda: alert_pages.open_titles(kept_book.book, clock(), viewer()),
        )

    all_nights = nights(whole, history, all_of_slurm, lambda: None)
    control.commands["summary"] = lambda _: {"success": True, "text": sentence_of(whole.hosts(view_clock()))}
    control.commands["digest"] = lambda wish: obey_digest(all_nights, wish, clock())
    app.register_blueprint(digest_page.blueprint(nights(cluster, past_of_all, slurm, current.get), clock))

    telling = Telling(
        settings.alerts,
        kept_book.book,
        site=settings.site.name,
        zone=zone,
        clock=clock,
        public_url=settings.server.public_url,
        # of replicas the one that evaluates: others cannot say whether it does
        is_well=lambda: (
            kept_book.leads() and watch.trouble is None and clock() - (watch.evaluated_at or 0) < WELL_SECONDS
        ),
    )
    control.commands["notify-test"] = telling.test
    start.with_book.append(telling.start)
    kept_book.ends.append(telling.stop)
    owners = Owners(
        settings.alerts,
        partial(key_of, LINKS_KEY),
        kept_book.book,
        clock,
        zone,
        settings.server.public_url,
    )
    app.register_blueprint(needed.blueprint(owners))

    def said(now: float) -> Iterator[tuple[str, str | None, str]]:
        """Tell what is wrong with this server itself, for its rules."""
        if history.trouble is not None:
            yield "history_not_written", None, history.trouble
        refused = reception.refused_since(now - REFUSED_SECONDS)
        if refused is not None:
            yield "posts_refused", None, refused
        for name, (_, why) in telling.failing().items():
            if not name.startswith(PERSON):
                yield "notices_failing", f"receiver {name}", without_addresses(why)

    watch = Watch(
        whole,
        events,
        all_of_slurm,
        kept_book.book,
        lambda: _rules(settings),
        clock=view_clock,
        receivers=settings.alerts.receivers,
        owners=owners.route,
        said=said,
        fence=kept_book.fence,
        done=kept_book.well,
        disks_before=lambda now: disks.remembered(history.series, now),
        public_url=settings.server.public_url,
    )
    control.commands["maintenance"] = lambda wish: obey_maintenance(kept_book.book, wish, clock(), zone)
    control.commands["reload"] = lambda wish: obey_reload(watch)
    start.with_book.append(watch.start)
    if kept_book.shared is not None:
        kept_book.shared.lease.when_taken.append(watch.wake)
    kept_book.ends.append(watch.stop)

    def link(path: str) -> str | None:
        url = settings.server.public_url
        return None if url is None else f"{url.rstrip('/')}/{path}"

    waiting = Waiting(
        LineFile(folder) if commons is None else commons.line,
        allowed=settings.alerts.waiting_to,
        put=kept_book.book.put,
        link=link,
        trouble=lambda: kept_book.trouble,
        most_of_client=settings.alerts.waiting_per_client,
    )
    morning = Morning(
        all_nights,
        put=kept_book.book.put,
        receivers=settings.alerts.digest_to,
        minute_of_day=minute_of_day(settings.alerts.digest_at),
        link=link,
    )
    control.forgets["alerts"] = lambda user: watch.between_rounds(lambda: kept_book.forget_user(user))
    control.forgets["who waits"] = waiting.forget_user
    errands.rounds["tell me when free"] = lambda now: waiting.round(lambda: whole.hosts(now), now)
    errands.rounds["the digest"] = morning.round
    app.register_blueprint(alert_pages.blueprint(kept_book.book, clock, zone, watch.coming))
    app.register_blueprint(waiting_page.blueprint(waiting, clock, Proxies(settings.server.trusted_proxies), zone))
    app.register_blueprint(pages.blueprint(cluster, events, view_clock, site, past.view_at))
    app.register_blueprint(slurm_pages.blueprint(slurm, cluster, view_clock, site.name))
    app.register_blueprint(openapi.blueprint(VERSION, settings.server.base_path))
    app.register_blueprint(charts.blueprint(cluster, view_clock))
    app.register_blueprint(past_parts.blueprint(past))
    app.register_blueprint(history_pages.blueprint(past, site.name))
    app.register_blueprint(first_history.blueprint(cluster, past_of_all, clock))
    app.register_blueprint(waste.blueprint(past, Groups(slurm.pictures, clock).of, site.name))
    parts = status.Parts(
        cluster=cluster,
        live=live,
        reception=reception,
        viewers=viewers,
        limits=settings.limits,
        began_at=clock(),
        version=VERSION,
        shared=None if replica is None else replica.status,
    )
    app.register_blueprint(status.blueprint(parts, view_clock))
    frames = wall.Frames(policy=SECURITY_HEADERS["Content-Security-Policy"], embed_from=settings.site.embed_from)
    app.register_blueprint(wall.blueprint(cluster, view_clock, settings.site.name, frames))
    app.register_blueprint(
        metrics.blueprint(
            Metrics(
                cluster,
                counts,
                xids,
                slurm,
                lambda: history.trouble,
                version=VERSION,
                users=settings.metrics.users,
                receivers_failing=lambda: len(telling.failing()),
            ),
            cluster,
            events,
            slurm,
            clock,
            hostname_label=settings.metrics.hostname_label,
            slurm_family=settings.metrics.slurm_family,
            users=settings.metrics.users,
            public_url=settings.server.public_url,
        )
    )
    gate = looking.gate(settings, tokens, clock, None if commons is None else _sessions(settings, commons))
    asked_of = sign_in.reader(gate, settings.viewers.proxy_header)
    provider = looking.provider(settings, clock, None if commons is None else commons.access)
    app.register_blueprint(sign_in.blueprint(gate, provider, settings.server.public_url))
    sign_in.stand_guard(app, gate, asked_of)
    _refuse_routes_without_scope(app)

    @app.before_request
    def remember_who_comes() -> None:
        reached.from_afar = reached.from_afar or not edge.caller_of(request.environ).here

    app.after_request(packing.packed)

    @app.after_request
    def add_security_headers(response: Response) -> Response:
        may_be_framed = "Content-Security-Policy" in response.headers  # its own says by whom
        for name, value in SECURITY_HEADERS.items():
            if not (may_be_framed and name == "X-Frame-Options"):
                response.headers.setdefault(name, value)
        return response

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response | tuple[str, int]:
        status = error.code or 500
        text = f"request: {error.name.lower()}"
        if _is_for_machines():
            answer = api.failure(status, text)
            answer.headers.extend(header for header in error.get_headers() if header[0] == "Allow")
            return answer
        return render_template("error.html", title=error.name, text=error.description or text), status

    @app.errorhandler(QueryError)
    def wrong_query(error: QueryError) -> Response | tuple[str, int]:
        if _is_for_machines():
            return api.failure(400, str(error))
        return render_template("error.html", title="This address cannot be answered", text=str(error)), 400

    @app.errorhandler(Exception)
    def own_error(error: Exception) -> Response | tuple[str, int]:
        text = edge.numbered(error, request.method, request.path)
        if _is_for_machines():
            return api.failure(500, text)
        return render_template("error.html", title="Error", text=text), 500

    app.wsgi_app = edge.Edge(  # type: ignore[method-assign]
        app.wsgi_app,
        ways=(*posts, looks),
        headers=SECURITY_HEADERS.items(),
        admit=lambda environ, scope: gate.admit(asked_of(environ), scope),
        base_path=settings.server.base_path,
        trusted_hosts=settings.viewers.trusted_hosts,
    )
    if is_loaded_by_others:
        app.wsgi_app = _started_by_a_request(app.wsgi_app, start)  # type: ignore[method-assign]
    waitress_limits.apply(settings.limits.body_bytes)
    return app


def _commons(settings: Settings, folder: Path, clock: Callable[[], float]) -> "Commons | None":
    """Return what replicas have in common; None: there is one server."""
    if settings.ledger.kind != "postgresql" or settings.ledger.url is None:
        return None
    from cluster_dash_server.ledger.commons import Commons  # what it needs is an extra

    return Commons(settings.ledger.url, folder, clock)


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


def _graceful(ingest: Ingest, history: History, replica: "Replica | None") -> "Graceful":
    """Return what takes posts of one of several replicas."""
    from cluster_dash_server.sharing.away import Graceful

    return Graceful(ingest, lambda: (None if replica is None else replica.refusal) or history.refusal)


def _shared_lives(lives: tuple[Live, Live], clusters: tuple[Cluster, Cluster], replica: "Replica") -> tuple[Live, Live]:
    """Return the live view, and the veiled one, under versions that all replicas share."""
    from cluster_dash_server.sharing.view import SharedLive

    named, veiled = (
        SharedLive(live, cluster, replica, name) for live, cluster, name in zip(lives, clusters, ("", "v"), strict=True)
    )
    return cast(Live, named), cast(Live, veiled)


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
    return relay.application(passing, SECURITY_HEADERS.items())


def _tokens(store: TokenStore, clock: Callable[[], float]) -> Tokens:
    """Read the tokens of a site."""
    tokens = Tokens(store, clock)
    try:
        tokens.load()
    except TokenError as error:
        raise ConfigError(str(error)) from None
    return tokens


def _shared_tokens(commons: "Commons", clock: Callable[[], float]) -> Tokens:
    """Return the tokens of replicas; while their database is away nobody is let in by one, until it is back."""
    if commons.access.fault is not None:
        commons.close()
        raise ConfigError(commons.access.fault)
    return Tokens(commons.access, clock)


class _Start:
    """What happens once, in the process that serves and before its first answer: history and the socket for commands.

    Neither flask's reloader nor `flask routes` does it.

    Raises:
        ConfigError: the file of history is of a newer release.
    """

    def __init__(
        self,
        history: History,
        book: KeptBook,
        cluster: Cluster,
        events: EventLog,
        control: Control,
        slurm: Slurm,
        errands: Errands,
        clock: Callable[[], float],
    ) -> None:
        self.is_done = False
        self.before_posts: list[Callable[[], None]] = []
        """What begins when the live view is what it was before a restart."""
        self.with_book: list[Callable[[], None]] = []
        """What begins where alerts are kept."""
        self._history = history
        self._book = book
        self._errands = errands
        self._cluster = cluster
        self._events = events
        self._control = control
        self._slurm = slurm
        self._clock = clock
        self._lock = threading.Lock()

    def __call__(self) -> None:
        if not self.is_done:
            with self._lock:
                self._begin()

    def _begin(self) -> None:
        if not self.is_done:
            try:
                last_seen, events = self._history.start()
            except StoreError as error:
                raise ConfigError(str(error)) from error
            self._cluster.begin_with(restart.recall(last_seen))
            restart.recall_slurm(last_seen, self._slurm)
            self._events.begin_with(events, self._clock())
            for begin in self.before_posts:
                begin()
            self._book.start(has_folder=self._history.keeps)
            if self._book.is_open:
                self._errands.start()
                for begin in self.with_book:
                    begin()
            self._control.start()
            self.is_done = True


def _started_by_a_request(serve: Callable[..., Any], start: _Start) -> Callable[..., Any]:
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
