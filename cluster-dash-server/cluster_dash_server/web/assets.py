"""Style and scripts of all pages."""

import functools
import gzip
import hashlib
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable

from flask import Blueprint, Response, abort, request

from cluster_dash_server.access.viewers import needs
from cluster_dash_server.web import charts, theme

MIMETYPES = {"css": "text/css", "js": "text/javascript", "json": "application/json", "svg": "image/svg+xml"}
"""Of static files, by ending: what the machine's own table says may differ, and a browser refuses such modules."""


class Assets:
    """Style and scripts, packed in memory under one digest: an upgrade changes the address of all of them.

    The digest stands in the path, not in a query, so that modules find each other by relative imports.
    """

    def __init__(self) -> None:
        files = dict(_static_files(resources.files("cluster_dash_server").joinpath("static")))
        files["theme.css"] = theme.stylesheet().encode()
        digest = hashlib.sha256()
        for name in sorted(files):
            digest.update(name.encode() + b"\0" + files[name] + b"\0")
        self.digest = digest.hexdigest()[:12]
        self._files = {name: (text, _packed(text)) for name, text in files.items()}

    def answer(self, name: str, *, immutable: bool) -> Response | None:
        """Return a file, None where there is none of this name."""
        if name not in self._files:
            return None
        plain, packed = self._files[name]
        takes_gzip = request.accept_encodings["gzip"] > 0
        mimetype = MIMETYPES.get(name.rpartition(".")[2], "application/octet-stream")
        response = Response(packed if takes_gzip else plain, mimetype=mimetype)
        if takes_gzip:
            response.headers["Content-Encoding"] = "gzip"
        response.headers["Vary"] = "Accept-Encoding"
        response.headers["Cache-Control"] = charts.IMMUTABLE if immutable else "no-cache"
        return response


@functools.cache
def _packed(text: bytes) -> bytes:
    """Pack a file: once, for all applications of this process."""
    return gzip.compress(text, 9, mtime=0)


def _static_files(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    for each in folder.iterdir():
        if each.is_dir():
            yield from _static_files(each, f"{prefix}{each.name}/")
        elif not each.name.startswith("."):
            yield prefix + each.name, each.read_bytes()


def add_assets(routes: Blueprint) -> Assets:
    """Add the route of style and scripts to those of pages; return what tells their address."""
    assets = Assets()

    @routes.get("/assets/<digest>/<path:name>")
    @needs("public")
    def asset(digest: str, name: str) -> Response:
        # a page of an older server may ask with its own digest: it gets this version, and must ask again
        return assets.answer(name, immutable=digest == assets.digest) or abort(404)

    return assets
