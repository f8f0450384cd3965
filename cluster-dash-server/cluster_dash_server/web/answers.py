"""What is answered, in one shape each: JSON, a page, a table for a terminal, and what cannot be done."""

from collections.abc import Sequence

from flask import Response, render_template, request

from cluster_dash_server.snapshot import dumps


def json_response(body: object, status: int = 200) -> Response:
    """Answer with JSON that holds no NaN; numbers are not rounded."""
    return Response(dumps(body) + b"\n", status=status, mimetype="application/json")


def failure(status: int, text: str) -> Response:
    """Answer with the one shape of all errors."""
    return json_response({"success": False, "msg": text}, status)


def html(template: str, status: int = 200, /, **context: object) -> Response:
    """Answer with a page that is asked for anew each time."""
    headers = {"Cache-Control": "no-cache"}
    return Response(render_template(template, **context), status, mimetype="text/html", headers=headers)


def in_columns(lines: Sequence[Sequence[str]]) -> str:
    """Draw a table for `curl`, its head first: columns are padded, and parted by a tab for `cut`."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "\t".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )


def refusal(status: int, title: str, text: str, part: str = "") -> Response:
    """Say what cannot be done: to programs with the name of the part that cannot, to people as a page."""
    if request.path.startswith("/api/"):
        return failure(status, f"{part}: {text}" if part else text)
    return html("error.html", status, title=title, text=text)
