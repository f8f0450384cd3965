"""Alerts: the page `/alerts`, what operators do there, `/api/v1/alerts` and `/api/v1/silences`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, tzinfo

from flask import Blueprint, Response, redirect, request, url_for
from werkzeug.wrappers import Response as Answer

from cluster_dash_server.access.viewers import Viewer, current, needs
from cluster_dash_server.alerts.book import Alert, Book, BookError, Silence
from cluster_dash_server.alerts.coming import Coming
from cluster_dash_server.alerts.routing import silence_of
from cluster_dash_server.alerts.standing import MOST_SHOWN, STANDINGS, Standing, gravity, open_count, seen_by, standing
from cluster_dash_server.notices.receivers import PERSON
from cluster_dash_server.notices.telling import without_addresses
from cluster_dash_server.snapshot import Json, dumps, printable
from cluster_dash_server.web.answers import failure, html, json_response, refusal
from cluster_dash_server.web.export import csv_response
from cluster_dash_server.web.operators import MOST_TEXT, NoSuch, Operators
from cluster_dash_server.web.parameters import QueryError, choice, json_object, moment, text_of

log = logging.getLogger(__name__)

COLUMNS = (
    *("id", "state", "rule", "severity", "title", "host", "gpu", "user", "began_at", "ended_at"),
    *("acknowledged", "silenced_until", "facts", "labels"),
)
SILENCE_COLUMNS = ("id", "filter", "by", "reason", "begins_at", "ends_at")
STATE_OF = {"critical": "error", "warning": "held", "info": "busy"}
"""The colours of a state in which a severity is shown; the word stands beside it."""
MOST_ALERTS, MOST_COMING = 10_000, 50
POLL_SECONDS = 15
UNTILS = (
    ("1 hour", "now+1h"),
    ("4 hours", "now+4h"),
    ("1 day", "now+1d"),
    ("7 days", "now+7d"),
    ("30 days", "now+30d"),
)


def blueprint(
    book: Book,
    clock: Callable[[], float],
    zone: tzinfo = UTC,
    coming: Callable[[], Sequence[Coming]] = tuple,
) -> Blueprint:
    """Build the routes.

    Args:
        book: where alerts are kept.
        clock: Unix s.
        zone: in which days begin.
        coming: tells what is about to be an alert.
    """
    routes = Blueprint("alerts", __name__, template_folder="../templates")
    operators = Operators(book, clock, zone)

    @routes.app_context_processor
    def count() -> dict[str, object]:
        """Tell every page how many alerts nobody has taken on."""
        return {"open_alerts": open_count(book, clock()) if "state:read" in current.get().scopes else 0}

    @routes.errorhandler(BookError)
    def no_book(error: BookError) -> Response:
        return refusal(503, "Alerts cannot be shown", str(error), part="alerts")

    @routes.errorhandler(NoSuch)
    def not_there(error: NoSuch) -> Response:
        return refusal(404, "This is not there any more", str(error))

    # ------------------------------------------------------------------------------------------------- reading

    def asked(now: float) -> list[Alert]:
        """Return the alerts that the request means, newest first: those that go on, or those of a stretch of time."""
        state = choice("state", ("open", "all", *STANDINGS))
        if request.args.get("from") or state in ("all", "ended"):
            begin = moment("from", request.args.get("from") or "now-24h", now, zone)
            end = moment("to", request.args.get("to") or "now", now, zone)
            found = book.history(begin, end, MOST_ALERTS)
        else:
            found = book.firing()
        if state in STANDINGS:
            found = [each for each in found if standing(each, now) == state]
        return [seen_by(each, current.get()) for each in found]

    @routes.get("/api/v1/alerts")
    @needs("state:read")
    def alerts() -> Response:
        form, now = choice("format", ("json", "csv")), clock()
        rows = [_row(each, now) for each in asked(now)]
        if form == "csv":
            return csv_response(COLUMNS, ([_flat(row[column]) for column in COLUMNS] for row in rows))
        waits = [_coming(each, current.get()) for each in coming()]
        return json_response({"at": now, "alerts": rows, "coming": waits[:MOST_ALERTS]})

    @routes.get("/api/v1/silences")
    @needs("state:read")
    def silences() -> Response:
        form, now = choice("format", ("json", "csv")), clock()
        rows = [_silence(each, current.get()) for each in book.silences(now)]
        if form == "csv":
            return csv_response(SILENCE_COLUMNS, ([row[column] for column in SILENCE_COLUMNS] for row in rows))
        return json_response({"at": now, "silences": rows})

    @routes.get("/alerts")
    @needs("state:read")
    def page() -> Response:
        return _page()

    def _page(problem: str = "") -> Response:
        now, viewer = clock(), current.get()
        going = [seen_by(each, viewer) for each in sorted(book.firing(), key=gravity)]
        of = {state: [each for each in going if standing(each, now) == state] for state in STANDINGS}
        begin = moment("from", request.args.get("from") or "now-24h", now, zone)
        past = [seen_by(each, viewer) for each in book.history(begin, now, MOST_SHOWN + 1) if each.ended_at is not None]
        failing = book.failing()
        waits = coming()
        return html(
            "alerts.html",
            page="alerts",
            now=now,
            json_path=None if problem else "api/v1/alerts",
            sentence=sentence(of),
            of={state: found[:MOST_SHOWN] for state, found in of.items()},
            counts={state: len(found) for state, found in of.items()},
            past=past[:MOST_SHOWN],
            past_more=len(past) > MOST_SHOWN,
            from_text=request.args.get("from") or "now-24h",
            coming=[_coming(each, viewer) for each in waits[:MOST_COMING]],
            coming_count=len(waits),
            silences=[_silence(each, viewer) for each in book.silences(now)],
            maintenance=book.maintenance(now),
            failing=_failing(failing, viewer),
            may_operate="operate" in viewer.scopes,
            untils=UNTILS,
            problem=problem,
            said=request.form if problem else request.args,
            done=_done(),
            state_of=STATE_OF,
            poll_seconds=POLL_SECONDS,
        )

    # --------------------------------------------------------------------------------------------------- acting

    @routes.post("/api/v1/alerts/<alert>/acknowledgement")
    @needs("operate")
    def acknowledged(alert: str) -> Response:
        try:
            operators.acknowledge(alert, text_of(json_object(), "note", MOST_TEXT))
        except QueryError as error:
            return failure(400, str(error))
        return json_response({"success": True})

    @routes.delete("/api/v1/alerts/<alert>/acknowledgement")
    @needs("operate")
    def withdrawn(alert: str) -> Response:
        operators.withdraw(alert)
        return json_response({"success": True})

    @routes.post("/api/v1/silences")
    @needs("operate")
    def silenced() -> Response:
        try:
            made = operators.silence(json_object())
        except QueryError as error:
            return failure(400, str(error))
        return json_response({"success": True, "id": made.id, "until": made.ends_at})

    @routes.delete("/api/v1/silences/<number>")
    @needs("operate")
    def unsilenced(number: str) -> Response:
        operators.end_silence(number)
        return json_response({"success": True})

    @routes.post("/alerts/<does>")
    @needs("operate")
    def form(does: str) -> Answer:
        said, done = request.form, ""
        try:
            match does:
                case "acknowledge":
                    operators.acknowledge(said.get("alert", ""), text_of(said, "note", MOST_TEXT))
                    done = f"acknowledged:{said.get('alert', '')}"
                case "withdraw":
                    operators.withdraw(said.get("alert", ""))
                    done = "withdrawn:"
                case "silence":
                    done = f"silenced:{operators.silence(said).id}"
                case "end-silence":
                    operators.end_silence(said.get("silence", ""))
                    done = "ended:"
                case _:
                    raise NoSuch(f"request: nothing is done by {printable(does, 32)}")
        except QueryError as error:
            answer = _page(str(error))
            answer.status_code = 400
            return answer
        return redirect(url_for("alerts.page", done=done), 303)

    return routes


_DONE = {
    "acknowledged": "Noted: you see to it.",
    "withdrawn": "Taken back: nobody sees to it now.",
    "silenced": "Silenced: nobody is told of it any more. It shows here within some seconds.",
    "ended": "The silence has ended.",
}
_UNDO = {"acknowledged": ("withdraw", "alert"), "silenced": ("end-silence", "silence")}


def _done() -> tuple[str, str, str, str] | None:
    """Return what was just done in words, and what undoes it: the form, its field and the value; None: nothing was."""
    what, _, which = request.args.get("done", "")[:100].partition(":")
    if what not in _DONE:
        return None
    does, name = _UNDO.get(what, ("", ""))
    return _DONE[what], does, name, which


def sentence(of: Mapping[Standing, Sequence[Alert]]) -> str:
    """Say how it stands: `2 alerts that nobody has taken on: 1 critical, 1 warning. 1 acknowledged.`."""
    firing = of["firing"]
    said = "No alert that nobody has taken on."
    if firing:
        graver = [(name, sum(each.severity == name for each in firing)) for name in ("critical", "warning", "info")]
        counts = ", ".join(f"{count} {name}" for name, count in graver if count)
        said = f"{len(firing)} {'alert' if len(firing) == 1 else 'alerts'} that nobody has taken on: {counts}."
    rest = [f"{len(of[state])} {state}." for state in STANDINGS[1:3] if of[state]]
    return " ".join([said, *rest])


def _row(alert: Alert, now: float) -> Json:
    said = alert.acknowledged
    return {
        "id": alert.id,
        "state": standing(alert, now),
        **{name: getattr(alert, name) for name in COLUMNS[2:10]},
        "acknowledged": None if said is None else {"by": said.by, "at": said.at, "note": said.note},
        "silenced_until": alert.silenced_until,
        "facts": dict(alert.facts),
        "labels": dict(alert.labels),
    }


def _coming(each: Coming, viewer: Viewer) -> Json:
    figure = each.figure if viewer.sees_names or not each.is_of_users else None
    return {
        "rule": each.rule,
        "severity": each.severity,
        "title": each.title,
        "host": each.host,
        "figure": figure,
        "since": each.since,
        "due_at": each.due_at,
    }


def _may_name(text: str) -> bool:
    """Say whether the filter of a silence may name a user."""
    rest = silence_of(text).rest
    return bool(rest.problems) or any(each.key in (None, "user") for term in rest.terms for each in term.alternatives)


def _failing(failing: Mapping[str, tuple[float, str]], viewer: Viewer) -> list[tuple[str, float, str]]:
    """Return who is not reached, since when and why; people only for who acts on it, counted for others."""
    if "operate" in viewer.scopes and viewer.sees_names:
        return [(name, since, why) for name, (since, why) in failing.items()]
    found = [
        (name, since, without_addresses(why)) for name, (since, why) in failing.items() if not name.startswith(PERSON)
    ]
    people = [since for name, (since, _) in failing.items() if name.startswith(PERSON)]
    if people:
        word = "person" if len(people) == 1 else "people"
        found.append((f"{len(people)} {word}", min(people), "who signs in as operator sees whom"))
    return found


def _flat(value: object) -> object:
    return dumps(value).decode() if isinstance(value, dict) else value


def _silence(silence: Silence, viewer: Viewer) -> Json:
    return {
        "id": silence.id,
        "filter": silence.filter if viewer.sees_names or not _may_name(silence.filter) else "…",
        "by": silence.by if viewer.sees_names else None,
        "reason": silence.reason,
        "begins_at": silence.begins_at,
        "ends_at": silence.ends_at,
    }
