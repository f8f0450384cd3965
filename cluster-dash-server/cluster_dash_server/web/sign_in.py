"""Signing in and out: the form, the way to an identity provider and back, and the cookie."""

from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import quote

from flask import Blueprint, Flask, Response, redirect, request, url_for
from werkzeug.wrappers import Response as Answer

from cluster_dash_server.access.oidc import OidcError, Provider
from cluster_dash_server.access.viewers import Asked, Denied, Gate, current, needs, scope_of
from cluster_dash_server.web.answers import html
from cluster_dash_server.web.edge import caller_of, denial
from cluster_dash_server.web.who_asks import cookie, cookie_name, is_secure

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

ON_THE_WAY = "_on_the_way"
"""Ends the name of the cookie that ties a sign-in at a provider to the browser that began it."""


def handed_back() -> str | None:
    """Return what the page of a request hands back, to show that it is ours."""
    return request.headers.get("X-CSRF-Token") or request.form.get("csrf")


def stand_guard(app: Flask, gate: Gate, asked_of: "Callable[[WSGIEnvironment], Asked]") -> None:
    """Put the gate in front of every route of an application."""

    @app.before_request
    def admit() -> None:
        scope = scope_of(app.view_functions[request.endpoint]) if request.endpoint else None
        if scope is not None:  # what matches no route is answered 404 or 405, and shows nothing
            gate.admit(asked_of(request.environ), scope)

    @app.errorhandler(Denied)
    def denied(error: Denied) -> Answer:
        wants_page = request.method in ("GET", "HEAD") and "text/html" in request.headers.get("Accept", "")
        if not wants_page:
            return Response(*denial(error, request.environ))
        if error.status == 401 and error.sign_in_helps:
            here = request.script_root + (request.full_path if request.query_string else request.path)
            return redirect(url_for("sign_in.form", next=here), 303)
        return html("error.html", error.status, title="Not for you", text=error.text)


def blueprint(gate: Gate, provider: Provider | None, public_url: str | None) -> Blueprint:
    """Build the routes; with the modes open and proxy there is nothing to sign in to."""
    sign_in = Blueprint("sign_in", __name__)
    by_password = gate.rules.mode == "basic"

    def page(goes_to: str, problem: str = "", status: int = 200, name: str = "") -> Response:
        answer = html(
            "sign_in.html",
            status,
            goes_to=goes_to,
            problem=problem,
            name=name,
            by_password=by_password,
            by_provider=provider is not None,
        )
        answer.headers["Cache-Control"] = "no-store"
        return answer

    def signed_in(name: str, role_session: str, goes_to: str) -> Answer:
        response = redirect(_own(goes_to), 303)
        _set(response, "", role_session, int(gate.sessions.seconds))
        return response

    def _set(response: Answer, ending: str, value: str, seconds: int) -> None:
        response.set_cookie(
            cookie_name(request.environ, gate, ending),
            value,
            max_age=seconds,
            path="/",
            secure=is_secure(request.environ, gate),
            httponly=True,
            samesite="Lax",
        )

    def _own(goes_to: str) -> str:
        """Return where to go: a path of ours and nothing else, whatever the request says."""
        base = url_for("pages.overview")
        is_path = goes_to.startswith(base) and not goes_to.startswith(("//", "/\\")) and goes_to.isprintable()
        return quote(goes_to, safe="/?&=%:@,;+!*()[]~-._'") if is_path else base

    @sign_in.get("/sign-in")
    @needs("public")
    def form() -> Answer:
        goes_to = request.args.get("next", "")
        if provider is not None and not by_password and request.args.get("go") is not None:
            try:
                url, state = provider.begin(f"{(public_url or '').rstrip('/')}/sign-in/return", goes_to)
            except OidcError as error:
                return page(goes_to, str(error), 502)
            response = redirect(url, 303)
            _set(response, ON_THE_WAY, state, 600)
            return response
        return page(goes_to)

    @sign_in.post("/sign-in")
    @needs("public")
    def enter() -> Answer:
        name, password = request.form.get("name", ""), request.form.get("password", "")
        goes_to = request.form.get("next", "")
        try:
            role = gate.sign_in(name, password, caller_of(request.environ))
        except Denied as error:
            return page(goes_to, error.text.partition(": ")[2], error.status, name)
        return signed_in(name, gate.sessions.begin(name, role), goes_to)

    @sign_in.get("/sign-in/return")
    @needs("public")
    def back() -> Answer:
        state = request.args.get("state", "")
        if provider is None or not state or state != cookie(request.environ, gate, ON_THE_WAY):
            return page("", "this sign-in was not begun in this browser: begin again", 400)
        try:
            name, goes_to = provider.finish(state, request.args.get("code", ""))
        except OidcError as error:
            return page("", str(error), 403)
        response = signed_in(name, gate.sessions.begin(name, gate.role_of(name)), goes_to)
        _set(response, ON_THE_WAY, "", 0)
        return response

    @sign_in.post("/sign-out")
    @needs("public")
    def leave() -> Answer:
        gate.sessions.end(cookie(request.environ, gate, ""))
        response = redirect(url_for("pages.overview"), 303)
        _set(response, "", "", 0)
        return response

    @sign_in.app_context_processor
    def who() -> dict[str, object]:
        return {"viewer": current.get(), "can_sign_out": gate.rules.mode in ("basic", "oidc")}

    return sign_in
