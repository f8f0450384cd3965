"""The link in the mail to an owner: “I need it until …”. Looking changes nothing: programs look at mail, too."""

from flask import Blueprint, Response, render_template

from cluster_dash_server.access.viewers import needs
from cluster_dash_server.alerts.book import BookError
from cluster_dash_server.owners import Owners


def blueprint(owners: Owners) -> Blueprint:
    """Build the routes; who has the link may use it, signed in or not."""
    routes = Blueprint("needed", __name__, template_folder="../templates")

    def page(token: str, *, is_said: bool) -> tuple[Response, int]:
        try:
            found = owners.find(token)
            if found is None:
                text = "It is not one of ours, its time is over, or what it is about has ended."
                return _whole(render_template("error.html", title="This link says nothing any more", text=text)), 404
            need, alert = found
            if is_said:
                owners.extend(need)
            is_extended = owners.is_extended(need)
        except BookError as error:
            return _whole(render_template("error.html", title="Not now", text=str(error))), 503
        facts = [fact for fact in alert.facts if fact[0] in ("what", "where", "model")]
        return _whole(
            render_template(
                "needed.html",
                alert=alert,
                facts=facts,
                until=owners.moment(need.until),
                is_extended=is_extended,
            )
        ), 200

    @routes.get("/needed/<token>")
    @needs("public")
    def look(token: str) -> tuple[Response, int]:
        return page(token, is_said=False)

    @routes.post("/needed/<token>")
    @needs("public")
    def say(token: str) -> tuple[Response, int]:
        return page(token, is_said=True)

    return routes


def _whole(text: str) -> Response:
    response = Response(text, mimetype="text/html")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Robots-Tag"] = "noindex"
    return response
