"""The link in the mail to an owner: “I need it until …”. Looking changes nothing: programs look at mail, too."""

from flask import Blueprint, Response

from cluster_dash_server.access.viewers import needs
from cluster_dash_server.alerts.book import BookError
from cluster_dash_server.owners import Owners
from cluster_dash_server.web.answers import html


def blueprint(owners: Owners) -> Blueprint:
    """Build the routes; who has the link may use it, signed in or not."""
    routes = Blueprint("needed", __name__, template_folder="../templates")

    def page(token: str, *, is_said: bool) -> Response:
        try:
            found = owners.find(token)
            if found is None:
                text = "It is not one of ours, its time is over, or what it is about has ended."
                return _unlisted("error.html", 404, title="This link says nothing any more", text=text)
            need, alert = found
            if is_said:
                owners.extend(need)
            is_extended = owners.is_extended(need)
        except BookError as error:
            return _unlisted("error.html", 503, title="Not now", text=str(error))
        facts = [fact for fact in alert.facts if fact[0] in ("what", "where", "model")]
        return _unlisted(
            "needed.html", alert=alert, facts=facts, until=owners.moment(need.until), is_extended=is_extended
        )

    @routes.get("/needed/<token>")
    @needs("public")
    def look(token: str) -> Response:
        return page(token, is_said=False)

    @routes.post("/needed/<token>")
    @needs("public")
    def say(token: str) -> Response:
        return page(token, is_said=True)

    return routes


def _unlisted(template: str, status: int = 200, /, **context: object) -> Response:
    """Answer with a page that no cache keeps and no search engine lists: its address is a secret."""
    answer = html(template, status, **context)
    answer.headers["Cache-Control"] = "no-store"
    answer.headers["X-Robots-Tag"] = "noindex"
    return answer
