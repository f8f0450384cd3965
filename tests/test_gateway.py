"""Through a real nginx and a real Caddy, as setup.md and etc/nginx have them: TLS, paths, headers, slow clients."""

import http.client
import http.server
import json
import os
import re
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.nginx import is_open, make_certificates, nginx
from tests.processes import BIN, TOP, Listening, Process, free_port, snapshot, start_server, wait_until

PASSCODE = "a passcode of a test"
SETUP = (TOP / "setup.md").read_text()
GATEWAY = (TOP / "etc" / "nginx" / "gateway.conf.template").read_text()
SLOW = 200


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA of our own (ca.pem) and a certificate of it (site.pem, site.key)."""
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder)
    return folder


def block(language: str) -> str:
    """Return the block of setup.md in a language."""
    found = re.search(rf"```{language}\n(.*?)```", SETUP, re.DOTALL)
    assert found is not None
    return found[1]


def serve(
    folder: Path, *, public_url: str | None, more: str = "", hosts: str = '"localhost", "dash.example.org"'
) -> Listening:
    """Start the server as setup.md has it behind a proxy."""
    public = "" if public_url is None else f'public_url = "{public_url}"\n'
    (folder / "server.toml").write_text(
        f'[server]\n{public}{more}\n[viewers]\ntrusted_hosts = [{hosts}, "127.0.0.1"]\n'
        f'[ingest]\npasscode = "{PASSCODE}"\n'
    )
    return start_server("-c", folder / "server.toml", "--data", folder / "data")


def ask(url: str, tls: Path, **headers: str) -> Any:
    """Ask through TLS; answer what urllib does, also where it is a refusal."""
    context = ssl.create_default_context(cafile=str(tls / "ca.pem"))
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60, context=context)
    except urllib.error.HTTPError as refusal:
        return refusal


def send_once(url: str, tls: Path, folder: Path) -> None:
    """Let a mole send one snapshot."""
    (folder / "mole.toml").write_text(
        f'[Json_Sender_Logger]\nuse = true\naddress_in = "{url}"\nauth_code = "{PASSCODE}"\nca_file = "{tls}/ca.pem"\n'
    )
    done = subprocess.run(
        [BIN / "cluster-dash-mole", "--once", "-c", folder / "mole.toml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


ETC = TOP / "etc"


def hosts_at(url: str, tls: Path) -> list[str]:
    hosts: list[str] = json.load(ask(f"{url}/api/v1/cluster", tls))["hosts"]["host"]
    return hosts


@pytest.mark.needs("nginx")
@pytest.mark.needs("openssl")
@pytest.mark.parametrize(
    "text", [block("nginx"), (ETC / "nginx" / "cluster-dash.conf").read_text()], ids=["of setup.md", "of etc"]
)
def test_the_nginx_lines_serve_pages_and_take_posts_by_tls(text: str, tls: Path, tmp_path: Path) -> None:
    port = free_port()
    with serve(tmp_path, public_url=f"https://dash.example.org:{port}/") as server:
        site = text.replace("listen 443", f"listen 127.0.0.1:{port}").replace("127.0.0.1:8080", server.url[7:])
        site = site.replace("/etc/ssl/dash.", f"{tls}/site.").replace(".site.pem", ".pem")
        with nginx(site, port, tmp_path):
            url = f"https://localhost:{port}"
            send_once(url, tls, tmp_path)
            assert len(hosts_at(url, tls)) == 1
            assert ask(f"{url}/", tls, Host="dash.example.org").status == 200
            assert ask(f"{url}/", tls, Host="other.example.org").status == 421
            targets = json.load(ask(f"{url}/api/v1/http-sd", tls))
            assert targets[0]["targets"] == [f"dash.example.org:{port}"]
            curl = [
                "curl",
                "-s",
                "--cacert",
                str(tls / "ca.pem"),
                "-o",
                "/dev/null",
                "-w",
                "%{http_version}",
                f"{url}/",
            ]
            assert subprocess.run(curl, capture_output=True, text=True, check=True).stdout == "2"


@pytest.mark.needs("nginx")
@pytest.mark.needs("openssl")
@pytest.mark.parametrize("cut", ["/", ""], ids=["the proxy cuts the path off", "the proxy leaves the path"])
def test_under_a_path_every_link_of_a_page_leads_back_through_it(cut: str, tls: Path, tmp_path: Path) -> None:
    port = free_port()
    with serve(tmp_path, public_url=f"https://localhost:{port}/dash/") as server:
        site = (
            f"server {{ listen 127.0.0.1:{port} ssl;\n"
            f"ssl_certificate {tls}/site.pem; ssl_certificate_key {tls}/site.key;\n"
            f"location /dash/ {{ proxy_pass http://{urlsplit(server.url).netloc}{cut};\n"
            "proxy_set_header Host $http_host;\n"
            "proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme; } }\n"
        )
        with nginx(site, port, tmp_path):
            url = f"https://localhost:{port}/dash"
            send_once(f"{url}/", tls, tmp_path)
            page = ask(f"{url}/", tls).read().decode()
            links = set(re.findall(r'(?:href|src)="(/[^"#]*)', page))
            assert links
            assert [link for link in links if not link.startswith("/dash/")] == []
            for link in sorted(links)[:12]:
                assert ask(f"https://localhost:{port}{link}", tls).status == 200, link
            labels = json.load(ask(f"{url}/api/v1/http-sd", tls))[0]["labels"]
            assert (labels["__metrics_path__"], labels["__scheme__"]) == ("/dash/metrics", "https")


@pytest.mark.needs("caddy")
@pytest.mark.needs("openssl")
@pytest.mark.parametrize(
    "text", ["{\n}\n" + block("caddy"), (ETC / "caddy" / "Caddyfile").read_text()], ids=["of setup.md", "of etc"]
)
def test_the_caddy_lines_serve_pages_and_take_posts_by_tls(text: str, tls: Path, tmp_path: Path) -> None:
    port = free_port()
    with serve(tmp_path, public_url=f"https://dash.example.org:{port}/") as server:
        lines = text.replace("127.0.0.1:8080", server.url[7:])
        # its own certificate and port: nobody signs one for a test
        lines = lines.replace(
            "dash.example.org {", f"https://localhost:{port} {{\n    tls {tls}/site.pem {tls}/site.key"
        )
        lines = lines.replace("{\n", "{\n    admin off\n    auto_https off\n", 1)
        (tmp_path / "Caddyfile").write_text(lines)
        caddy: list[str | Path] = ["caddy", "run", "--config", tmp_path / "Caddyfile", "--adapter", "caddyfile"]
        with Process(caddy, environment={"XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}):
            wait_until(lambda: is_open(port), what="Caddy listens")
            url = f"https://localhost:{port}"
            send_once(url, tls, tmp_path)
            assert len(hosts_at(url, tls)) == 1


@pytest.mark.needs("openssl")
def test_the_server_speaks_tls_without_a_proxy(tls: Path, tmp_path: Path) -> None:
    more = f'server = "granian"\ntls_certificate = "{tls}/site.pem"\ntls_key = "{tls}/site.key"'
    with serve(tmp_path, public_url=None, more=more) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        assert url.startswith("https://")
        wait_until(lambda: is_open(urlsplit(url).port or 0), what="granian listens")
        send_once(url, tls, tmp_path)
        assert len(hosts_at(url, tls)) == 1
        assert (
            f"curl {url}/api/gpu-summary" in ask(f"{url}/", tls).read().decode()
        )  # it knows that it was asked by https
        with pytest.raises((OSError, http.client.HTTPException)):
            urllib.request.urlopen(url.replace("https", "http"), timeout=20)
        old = ssl.create_default_context(cafile=str(tls / "ca.pem"))
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert urllib.request.urlopen(f"{url}/healthz", timeout=20, context=old).status == 200
        doctor: list[str | Path] = [BIN / "cluster-dash-server", "doctor", "-c", tmp_path / "server.toml"]
        everywhere = "0.0.0.0"  # noqa: S104 - the doctor alone believes it
        place = {"CLUSTER_DASH_SERVER__PORT": str(urlsplit(url).port), "CLUSTER_DASH_SERVER__HOST": everywhere}
        told = subprocess.run(doctor, capture_output=True, text=True, check=False, env={**os.environ, **place})
        assert "✔ encryption: TLS of the server itself" in told.stdout
        assert ", with 1 hosts" in told.stdout


@pytest.mark.needs("openssl")
@pytest.mark.parametrize(
    ("kind", "certificate", "key", "says"),
    [
        ("waitress", "site.pem", "site.key", "waitress speaks no TLS"),
        ("granian", "site.pem", "ca.key", "server.tls_certificate: "),
        ("granian", "nothing.pem", "site.key", "No such file"),
        ("granian", "site.pem", None, "server.tls_key: is missing"),
    ],
)
def test_tls_that_cannot_be_is_told_in_words(
    kind: str, certificate: str, key: str | None, says: str, tls: Path, tmp_path: Path
) -> None:
    lines = [f'server = "{kind}"', f'tls_certificate = "{tls / certificate}"']
    lines += [] if key is None else [f'tls_key = "{tls / key}"']
    (tmp_path / "server.toml").write_text("[server]\nport = 0\n" + "\n".join(lines) + "\n")
    command: list[str | Path] = [
        BIN / "cluster-dash-server",
        "serve",
        "-c",
        tmp_path / "server.toml",
        "--data",
        tmp_path / "data",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 78, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


class Echo:
    """A server that answers with what it was asked, in place of Grafana or Prometheus."""

    def __enter__(self) -> "Echo":
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def gateway(tls: Path, folder: Path, also: str | None = None) -> Iterator[tuple[str, str]]:
    """Run the gateway, on one more address where that is wanted; give its address and the server's."""
    port = free_port()
    with ExitStack() as stack:
        grafana, prometheus = stack.enter_context(Echo()), stack.enter_context(Echo())
        server = stack.enter_context(
            serve(
                folder,
                public_url=f"https://localhost:{port}/",
                more='trusted_proxies = ["127.0.0.1"]',
                hosts='"localhost", "10.99.77.1"',
            )
        )
        values = {
            "LISTEN": f"127.0.0.1:{port}" + (f" ssl http2; listen {also}:{port}" if also else ""),
            "CERTIFICATE": f"{tls}/site.pem",
            "KEY": f"{tls}/site.key",
            "SERVER": server.url[7:],
            "GRAFANA": grafana.address,
            "PROMETHEUS": prometheus.address,
        }
        site = re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], GATEWAY)
        stack.enter_context(nginx(site, port, folder))
        yield f"https://localhost:{port}", server.url


@pytest.mark.needs("nginx")
@pytest.mark.needs("openssl")
def test_the_gateway_leads_to_dashboard_grafana_and_prometheus(tls: Path, tmp_path: Path) -> None:
    with gateway(tls, tmp_path) as (url, _):
        send_once(url, tls, tmp_path)
        assert len(hosts_at(url, tls)) == 1
        grafana = json.load(ask(f"{url}/grafana/d/x?y=1", tls, Upgrade="websocket", Connection="Upgrade"))
        assert (grafana["path"], grafana["upgrade"], grafana["connection"]) == (
            "/grafana/d/x?y=1",
            "websocket",
            "upgrade",
        )
        assert json.load(ask(f"{url}/prometheus/graph", tls))["path"] == "/prometheus/graph"


@pytest.mark.needs("nginx")
@pytest.mark.needs("openssl")
def test_nobody_can_say_through_the_gateway_that_he_is_somebody_else(tls: Path, tmp_path: Path) -> None:
    forged = {"X-Forwarded-For": "10.0.0.9", "X-Forwarded-Proto": "http", "Forwarded": "for=10.0.0.9", "X-Real-IP": "1"}
    with gateway(tls, tmp_path) as (url, _):
        for path in ("/grafana/", "/prometheus/"):
            told = json.load(ask(f"{url}{path}", tls, **forged))
            assert (told["x-forwarded-for"], told["x-forwarded-proto"]) == ("127.0.0.1", "https")
            assert (
                "10.0.0.9" not in json.dumps({name: told[name] for name in told if name != "forwarded"}) or path == ""
            )


def connections_to(url: str) -> int:
    """Count the connections that a server has."""
    port = f":{urlsplit(url).port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[1].endswith(port) and line.split()[3] == "01" for line in lines)


@pytest.mark.needs("nginx")
@pytest.mark.needs("openssl")
def test_slow_senders_reach_the_server_never_and_disturb_nobody(tls: Path, tmp_path: Path) -> None:
    body = json.dumps({**snapshot("gpu01"), "auth_code": PASSCODE}).encode()
    context = ssl.create_default_context(cafile=str(tls / "ca.pem"))
    slow = []
    with gateway(tls, tmp_path) as (url, server_url):
        place = urlsplit(url)
        try:
            for number in range(SLOW):
                raw = socket.create_connection(("127.0.0.1", place.port), timeout=60, source_address=("127.0.0.2", 0))
                each = context.wrap_socket(raw, server_hostname="localhost")
                head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
                each.sendall(head.encode()[: None if number % 2 else 20])
                slow.append(each)
            for drop in range(3):
                for number, each in enumerate(slow):
                    if number % 2:
                        try:
                            each.sendall(body[drop : drop + 1])
                        except OSError:
                            continue  # refused already: too many of one address
                connection = http.client.HTTPSConnection("localhost", place.port, timeout=60, context=context)
                connection.request("POST", "/", body, {"Content-Type": "application/json"})
                assert connection.getresponse().status == 200
                connection.close()
                assert connections_to(server_url) <= 8
                time.sleep(0.1)
            refused = 0
            for each in slow[1::2]:
                each.settimeout(0.01)
                try:
                    refused += b" 503 " in each.recv(64)
                except (TimeoutError, OSError):
                    continue
            assert refused >= SLOW // 2 - 64
        finally:
            for each in slow:
                each.close()


@pytest.mark.needs("root")
@pytest.mark.needs("nginx")
@pytest.mark.needs("openssl")
@pytest.mark.needs("ip")
def test_a_mole_that_can_only_call_out_is_live_through_the_gateway(tls: Path, tmp_path: Path) -> None:
    """The mole's namespace has one way out and nothing that listens, as a pod behind NAT."""
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets nobody make a network namespace")
    holder = Process(["unshare", "-n", "sleep", "600"])
    with holder, ExitStack() as stack:
        inside = ["nsenter", "-t", str(holder.popen.pid), "-n"]

        def enters() -> bool:
            here, there = (Path(f"/proc/{pid}/ns/net").readlink() for pid in ("self", holder.popen.pid))
            return here != there

        wait_until(enters, what="the namespace is there")
        link = [
            "ip",
            "link",
            "add",
            "cdtest0",
            "type",
            "veth",
            "peer",
            "name",
            "cdtest1",
            "netns",
            str(holder.popen.pid),
        ]
        if subprocess.run(link, capture_output=True, check=False).returncode != 0:
            pytest.skip("this machine lets nobody make a network interface")
        stack.callback(subprocess.run, ["ip", "link", "del", "cdtest0"], check=False, capture_output=True)
        for command in (
            ["ip", "addr", "add", "10.99.77.1/30", "dev", "cdtest0"],
            ["ip", "link", "set", "cdtest0", "up"],
            [*inside, "ip", "addr", "add", "10.99.77.2/30", "dev", "cdtest1"],
            [*inside, "ip", "link", "set", "cdtest1", "up"],
        ):
            subprocess.run(command, check=True, capture_output=True)
        url, _ = stack.enter_context(gateway(tls, tmp_path, also="10.99.77.1"))  # the other end of the pair
        place = urlsplit(url)
        environment = {
            "CLUSTER_DASH_JSON_SENDER_LOGGER__USE": "true",
            "CLUSTER_DASH_JSON_SENDER_LOGGER__ADDRESS_IN": f"https://10.99.77.1:{place.port}/",
            "CLUSTER_DASH_JSON_SENDER_LOGGER__AUTH_CODE": PASSCODE,
            "CLUSTER_DASH_JSON_SENDER_LOGGER__CA_FILE": str(tls / "ca.pem"),
            "CLUSTER_DASH_POLL_SETTINGS__POLL_INTERVAL_IN_SECS": "1",
        }
        (tmp_path / "config.toml").write_text("")
        mole = stack.enter_context(
            Process([*inside, BIN / "cluster-dash-mole", "run"], environment=environment, folder=tmp_path)
        )
        wait_until(lambda: hosts_at(url, tls), what=f"the host is live: {mole.output.decode()}")
        listening = Path(f"/proc/{holder.popen.pid}/net/tcp").read_text().splitlines()[1:]
        assert [line for line in listening if line.split()[3] == "0A"] == []
