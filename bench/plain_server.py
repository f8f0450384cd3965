"""The reference for every ratio of the server: the same job, done the plain way."""

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import waitress
from flask import Flask, request

schema = json.loads(Path(sys.argv[1]).read_text())
hosts: dict[str, Any] = {}
app = Flask(__name__)


@app.post("/")
def take() -> dict[str, Any]:
    """Check a snapshot and keep it."""
    snapshot = request.get_json(force=True)
    if snapshot.pop("auth_code") != "lab_cluster_2025":
        return {"success": False, "msg": "auth_code"}
    jsonschema.validate(snapshot, schema)
    hosts[snapshot["hostname"]] = snapshot
    return {"success": True, "msg": "stored result"}


@app.get("/hosts")
def show() -> dict[str, Any]:
    """Show all of them."""
    return hosts


@app.get("/healthz")
def healthz() -> dict[str, Any]:
    """Say that it answers."""
    return {}


server = waitress.create_server(app, host="127.0.0.1", port=0, threads=4)
print(f"listens on http://127.0.0.1:{server.effective_port}", flush=True)
server.run()
