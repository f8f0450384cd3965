"""A real nginx on loopback, and certificates for it."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import Process, wait_until


def make_certificates(folder: Path) -> None:
    """Make a CA of our own (ca.pem) and a certificate of it (site.pem, site.key) in a folder."""
    names = "subjectAltName=DNS:localhost,DNS:dash.example.org,IP:127.0.0.1,IP:10.99.77.1"
    (folder / "names").write_text(names + "\n")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for command in (
        ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=a CA of a test"],
        ["req", *key, "-keyout", "site.key", "-out", "site.csr", "-subj", "/CN=dash.example.org"],
        [
            *("x509", "-req", "-in", "site.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-out", "site.pem", "-days", "2", "-extfile", "names"),
        ],
    ):
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except OSError:
        return False
    return True


@contextmanager
def nginx(site: str, port: int, folder: Path) -> Iterator[Process]:
    """Run nginx with a site that listens on a port; `folder` is for its files."""
    process = start(site, port, folder)
    with process:
        yield process


def start(site: str, port: int, folder: Path) -> Process:
    """Start nginx, and return once it listens; who calls ends it."""
    (folder / "site.conf").write_text(site)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\nuser root;\npid {folder}/pid;\nerror_log stderr;\nworker_processes 1;\n"
        "events { worker_connections 4096; }\n"
        f"http {{\naccess_log off;\n{temporary}include {folder}/site.conf;\n}}\n"
    )
    process = Process(["nginx", "-p", folder, "-c", folder / "nginx.conf", "-e", "stderr"])
    try:
        wait_until(lambda: is_open(port) or process.popen.poll() is not None, what="nginx listens")
        assert process.popen.poll() is None, process.output.decode()
    except (AssertionError, TimeoutError):
        process.__exit__()
        raise
    return process
