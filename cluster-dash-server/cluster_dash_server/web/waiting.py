"""Tell me when some are free: the page `/waiting`, its form, and `/api/v1/waiting`."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, tzinfo

from flask import Blueprint, Response, redirect, request, url_for
from werkzeug.wrappers import Response as Answer

from cluster_dash_server import free
from cluster_dash_server.access.auth import Limiter, Proxies
from cluster_dash_server.access.viewers import Viewer, current, needs
from cluster_dash_server.snapshot import Json, printable
from cluster_dash_server.waiting import DEFAULT_HOURS, Told, Wait, WaitError, Waiting, shown, words_of
from cluster_dash_server.web.answers import failure, html, json_response, refusal
from cluster_dash_server.web.edge import caller_of
from cluster_dash_server.web.export import csv_response
from cluster_dash_server.web.parameters import QueryError, choice, count, digits, json_object, size_mib, text_of, until

log = logging.getLogger(__name__)

COLUMNS = ("id", "asked_at", "until", "count", "model", "free_mem", "q", "to", "client", "text")
A_MINUTE = 10
"""Wishes of one client in a minute."""
EVERYBODY = "*"
"""What the form that ends all wishes says in place of a client."""
LONGEST = {"model": 64, "q": 2_000, "to": 320, "mem": 16, "until": 64}
UNTILS = (("4 hours", "now+4h"), ("24 hours", "now+24h"), ("3 days", "now+3d"), ("7 days", "now+7d"))


def blueprint(waiting: Waiting, clock: Callable[[], float], proxies: Proxies, zone: tzinfo = UTC) -> Blueprint:
    """Build the routes.

    Args:
        waiting: those who wait.
        clock: Unix s.
        proxies: whose word counts on who asks.
        zone: in which days begin.
    """
    routes = Blueprint("waiting", __name__, template_folder="../templates")
    limiter = Limiter(A_MINUTE)
    routes.add_app_template_filter(words_of, "wish_words")

    @routes.app_context_processor
    def whom() -> dict[str, object]:
        """Give the overview what its form needs."""
        return {"waiting_to": waiting.allowed, "untils": UNTILS}

    @routes.errorhandler(WaitError)
    def refused(error: WaitError) -> Response:
        return refusal(error.status, "This cannot be done", error.text)

    def asked(said: Mapping[str, object], now: float) -> tuple[Wait, str]:
        """Take a wish; see `Waiting.add`.

        Raises:
            QueryError: something in it cannot be understood.
            WaitError: see there.
        """
        viewer, address = current.get(), proxies.address(caller_of(request.environ))
        if limiter.is_too_many(limiter.failed(address)):
            raise WaitError(429, f"request: more than {A_MINUTE} wishes in a minute: try again in a minute")
        given = {name: text_of(said, name, longest) for name, longest in LONGEST.items()}
        number = said.get("count", "1")
        wish = free.Wish(
            count=count(str(number) if isinstance(number, int | str) and number is not True else "true"),
            free_mem=size_mib("mem", given["mem"] or "0G"),
            model=given["model"],
        )
        ends_at = until(given["until"] or f"{DEFAULT_HOURS:.0f}h", now, zone)
        client = "" if "operate" in viewer.scopes else viewer.name or address
        wait, key = waiting.add(wish, q=given["q"], to=given["to"], until=ends_at, now=now, client=client)
        log.info("audit: %s waits, asked for by %s", wait.id, _who())
        return wait, key

    @routes.get("/api/v1/waiting")
    @needs("state:read")
    def those_who_wait() -> Response:
        form, now = choice("format", ("json", "csv")), clock()
        rows = [_row(each, current.get()) for each in waiting.waits(now)]
        if form == "csv":
            return csv_response(COLUMNS, ([row[column] for column in COLUMNS] for row in rows))
        return json_response({"at": now, "waiting": rows})

    @routes.post("/api/v1/waiting")
    @needs("state:read")
    def tell_me() -> Response:
        now = clock()
        try:
            wait, key = asked(json_object(), now)
        except QueryError as error:
            return failure(400, str(error))
        ahead = [each.id for each in waiting.waits(now)].index(wait.id)
        return json_response({"success": True, "id": wait.id, "key": key, "until": wait.until, "ahead": ahead})

    @routes.delete("/api/v1/waiting/<number>")
    @needs("state:read")
    def no_longer(number: str) -> Response:
        try:
            key = text_of(json_object(), "key", 64)
        except QueryError as error:
            return failure(400, str(error))
        waiting.end(_number(number), clock(), key=key, may_end_any="operate" in current.get().scopes)
        log.info("audit: %s waits no longer, at the wish of %s", printable(number, 16), _who())
        return json_response({"success": True})

    @routes.delete("/api/v1/waiting")
    @needs("operate")
    def nobody_any_longer() -> Response:
        try:
            ended = end_all(text_of(json_object(), "client", 64))
        except QueryError as error:
            return failure(400, str(error))
        return json_response({"success": True, "ended": ended})

    def end_all(client: str) -> int:
        """End all wishes, or those of one client."""
        ended = waiting.end_all(clock(), client=client or None)
        whose = f"of {printable(client, 64)} " if client else ""
        log.info("audit: %d wishes %swait no longer, at the wish of %s", ended, whose, _who())
        return ended

    @routes.get("/waiting")
    @needs("state:read")
    def page() -> Response:
        now = clock()
        key, number = request.args.get("key", ""), request.args.get("id", "")
        id_ = digits(number, 15)
        mine = None if id_ is None else waiting.find(id_, key, now)
        return _page(now, mine=mine, key=key)

    @routes.post("/waiting")
    @needs("state:read")
    def form() -> Answer:
        now = clock()
        try:
            wait, key = asked(request.form, now)
        except (QueryError, WaitError) as error:
            status = error.status if isinstance(error, WaitError) else 400
            answer = _page(now, problem=str(error))
            answer.status_code = status
            return answer
        return redirect(url_for("waiting.page", id=wait.id, key=key), 303)

    @routes.post("/waiting/end")
    @needs("state:read")
    def end() -> Answer:
        number = request.form.get("id", "")
        may_end_any = "operate" in current.get().scopes
        waiting.end(_number(number), clock(), key=request.form.get("key"), may_end_any=may_end_any)
        log.info("audit: %s waits no longer, at the wish of %s", printable(number, 16), _who())
        return redirect(url_for("waiting.page"), 303)

    @routes.post("/waiting/end-all")
    @needs("operate")
    def all_end() -> Answer:
        client = request.form.get("client", "")
        if not client:
            raise WaitError(400, "client: say whose wishes are to end, or everybody")
        end_all("" if client == EVERYBODY else client)
        return redirect(url_for("waiting.page"), 303)

    def _page(now: float, *, mine: Wait | Told | None = None, key: str = "", problem: str = "") -> Response:
        viewer = current.get()
        waits = waiting.waits(now)
        may_end_any = "operate" in viewer.scopes
        clients = Counter(each.client for each in waits if each.client) if may_end_any and viewer.sees_names else {}
        return html(
            "waiting.html",
            page="waiting",
            now=now,
            json_path=None if problem else "api/v1/waiting",
            problem=problem,
            said=request.form if request.method == "POST" else request.args,
            mine=mine if isinstance(mine, Wait) else None,
            told=mine if isinstance(mine, Told) else None,
            is_over=bool(key) and mine is None,
            key=key,
            ahead=waits.index(mine) if isinstance(mine, Wait) else 0,
            to=None if mine is None else shown(mine.receiver, in_full=True),
            rows=[_row(each, viewer) for each in waits],
            may_end_any=may_end_any,
            clients=sorted(clients.items(), key=lambda each: (-each[1], each[0])),
            everybody=EVERYBODY,
        )

    return routes


def _number(text: str) -> int:
    found = digits(text, 15)
    if found is None:
        raise WaitError(404, f"id: nobody waits under {printable(text, 16)}")
    return found


def _who() -> str:
    return printable(current.get().name or "who has not signed in", 64)


def _row(wait: Wait, viewer: Viewer) -> Json:
    in_full = "operate" in viewer.scopes
    return {
        "id": wait.id,
        "asked_at": wait.asked_at,
        "until": wait.until,
        "count": wait.wish.count,
        "model": wait.wish.model or None,
        "free_mem": wait.wish.free_mem or None,
        "q": wait.q or None,
        "to": shown(wait.receiver, in_full=in_full) if viewer.sees_names else None,
        "client": (wait.client or None) if in_full and viewer.sees_names else None,
        "text": words_of(wait),
    }
