"""A real `serve`: where it listens, how many files it may open, whose token it sends with, and how it stops."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from chaos.proxy import Proxy
from chaos.stage import PATIENCE
from notifier import app, process
from notifier.delivery.answers import Answer
from notifier.delivery.gateway import Gateway
from notifier.models import Outcome, Reason
from notifier.settings import Settings
from notifier.simulator import Simulator
from tests.conftest import poll_until
from tests.processes import KEY, SERVER, TOKEN, Running, environment, started

HEADERS = {"Authorization": f"Bearer {TOKEN}"}


def connection(url: str) -> http.client.HTTPConnection:
    place = urlsplit(url)
    return http.client.HTTPConnection(place.hostname or "", place.port, timeout=PATIENCE)


def get(url: str, path: str) -> http.client.HTTPResponse:
    """The answer to a call on a connection of its own."""
    with closing(connection(url)) as caller:
        caller.request("GET", path, headers=HEADERS)
        answer = caller.getresponse()
        answer.read()
        return answer


def serving(before: str = "") -> tuple[str, ...]:
    """Arguments of a Python that does something and serves, also from a database that is not made to last."""
    return (
        "serve",
        "-c",
        "import functools, resource, signal\nfrom notifier import app, cli\n"
        f"app.readiness.check = functools.partial(app.readiness.check, durable=False)\n{before}\ncli.main(['serve'])",
    )


@pytest.fixture
def api_only(dsn: str) -> dict[str, str]:
    return {
        "ROLE": "api",
        "DATABASE_URL": dsn,
        "SECRET_KEY": KEY,
        "BOOTSTRAP_TOKEN": TOKEN,
        "PYTHONPATH": str(SERVER.parent),
    }


# ---- stopping


class Loader(threading.Thread):
    """Sends batches over a kept connection, one after the other, until it cannot connect any more."""

    def __init__(self, number: int, url: str) -> None:
        super().__init__()
        self.number, self.caller = number, connection(url)
        self.answered = 0
        self.torn: list[str] = []
        self.closes = 0

    def run(self) -> None:
        for batch in range(10_000):
            first = 79_000_000_000 + self.number * 10_000_000 + batch * 300
            body = json.dumps({"items": [{"phone": str(first + i)} for i in range(300)]})
            try:
                if self.caller.sock is None:
                    self.caller.connect()
            except ConnectionRefusedError:
                return
            try:
                self.caller.request("POST", "/api/v1/clients/batch", body, HEADERS)
                answer = self.caller.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.torn.append(repr(error))
                return
            assert answer.status == 200
            self.answered += 300
            self.closes += answer.headers["Connection"] == "close"


async def test_whoever_loads_clients_gets_every_answer_before_it_goes(place: Path, api_only: dict[str, str]) -> None:
    with started(place, *serving(), **api_only, DRAIN_DELAY="1.5") as one:
        url = await one.up()
        loaders = [Loader(number, url) for number in range(4)]
        for each in loaders:
            each.start()
        await poll_until(lambda: all(each.answered for each in loaders))
        one.process.terminate()
        seen: list[tuple[int, int, str | None]] = []

        def refused() -> bool:
            try:
                ready, answer = get(url, "/readyz").status, get(url, "/api/v1/clients?limit=1")
            except ConnectionRefusedError:
                return True
            seen.append((ready, answer.status, answer.headers["Connection"]))
            return False

        await poll_until(refused)
        assert one.process.wait(PATIENCE) == 0
        for each in loaders:
            each.join()
    assert [each.torn for each in loaders] == [[]] * 4
    assert (503, 200, "close") in seen  # not ready any more, and still answering
    assert all(each.closes for each in loaders)
    with psycopg.connect(api_only["DATABASE_URL"]) as database:
        stored = database.execute("SELECT count(*) FROM clients").fetchone()
    assert stored == (sum(each.answered for each in loaders),)


@pytest.mark.parametrize("rest", [True, False], ids=["the rest comes", "the rest does not come"])
async def test_half_an_upload_is_waited_for_as_long_as_the_grace_lasts(
    place: Path, api_only: dict[str, str], rest: bool
) -> None:
    grace: dict[str, str] = {} if rest else {"SHUTDOWN_GRACE": "1.5", "GATEWAY_TIMEOUT": "1"}
    with started(place, *serving(), **(api_only | grace)) as one, ExitStack() as stack:
        url = await one.up()
        body = json.dumps({"items": [{"phone": "79161234567", "attributes": {"a": "b" * 15_000}}] * 200}).encode()
        uploading = stack.enter_context(closing(connection(url)))
        uploading.putrequest("POST", "/api/v1/clients/batch")
        for header, value in {**HEADERS, "Content-Length": str(len(body))}.items():
            uploading.putheader(header, value)
        uploading.endheaders(body[: len(body) // 2])
        assert get(url, "/healthz").status == 200
        one.process.terminate()

        def refuses() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", urlsplit(url).port)) != 0

        await poll_until(refuses)
        if rest:
            uploading.send(body[len(body) // 2 :])
            answer = uploading.getresponse()
            assert answer.status == 200
            assert json.loads(answer.read())["items"][-1]["status"] == "updated"
        assert one.process.wait(PATIENCE) == 0
        assert ("stopped before all was answered" in one.said()) is not rest


def running(place: Path) -> bool:
    return (place / "postgresql/postgres/data/postmaster.pid").exists()


@pytest.mark.parametrize("by", [signal.SIGHUP, signal.SIGQUIT])
async def test_a_terminal_that_goes_stops_it_as_sigterm_does(place: Path, by: signal.Signals) -> None:
    with started(place) as one:
        await one.up()
        await poll_until(lambda: '"the scheduler runs"' in one.said())
        assert running(place)
        one.process.send_signal(by)
        if by is signal.SIGHUP:  # the shell sends another
            await poll_until(lambda: '"stopping"' in one.said())
            one.process.send_signal(by)
        assert one.process.wait(PATIENCE) == 0
        assert '"stopped"' in one.said()
        assert not running(place)


async def test_under_nohup_a_hang_up_is_nothing(place: Path, api_only: dict[str, str]) -> None:
    with started(place, *serving("signal.signal(signal.SIGHUP, signal.SIG_IGN)"), **api_only) as one:
        url = await one.up()
        one.process.send_signal(signal.SIGHUP)
        assert get(url, "/healthz").status == 200
        assert one.process.poll() is None


# ---- open files


def soft_limit(one: Running) -> int:
    limits = Path(f"/proc/{one.process.pid}/limits").read_text()
    return int(next(line for line in limits.splitlines() if line.startswith("Max open files")).split()[3])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_the_soft_limit_of_files_is_raised_to_the_hard_one(place: Path, api_only: dict[str, str]) -> None:
    limit = "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 2000))"
    with started(place, *serving(limit), **api_only) as one:
        await one.up()
        assert soft_limit(one) == 2000


def test_where_files_do_not_suffice_it_does_not_start(place: Path) -> None:
    ended = subprocess.run(
        [sys.executable, *serving("resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))")[1:]],
        check=False,
        env=environment(
            place,
            GATEWAY_URL="http://127.0.0.1:9",
            GATEWAY_TOKEN="x",
            GATEWAY_CONCURRENCY="2000",
            PYTHONPATH=str(SERVER.parent),
        ),
        cwd=place,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert "GATEWAY_CONCURRENCY: with 2000 this process needs 2116 open files, and may have 1024" in ended.stderr
    assert not (place / "postgresql").exists()


# ---- where it listens


@pytest.mark.parametrize(
    ("hosts", "addresses"),
    [
        ("::", ("127.0.0.1", "::1")),
        ("127.0.0.1,[::1]", ("127.0.0.1", "::1")),
        ("[::1]", ("::1",)),
        ("localhost", ("127.0.0.1",)),
    ],
)
def test_both_families_can_be_served(hosts: str, addresses: tuple[str, ...]) -> None:
    with process.bound(Settings.load({"HOST": hosts, "PORT": "0"}, None)) as sockets:
        port = sockets[0].getsockname()[1]
        for address in addresses:
            socket.create_connection((address, port), 5).close()


def test_one_address_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.2", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = Settings.load({"HOST": "127.0.0.1,127.0.0.2", "PORT": str(port)}, None)
        with (
            pytest.raises(process.PortTaken, match=rf"cannot listen on 127\.0\.0\.2 port {port}"),
            process.bound(settings),
        ):
            pass


# ---- the gateway's token


def put(path: Path, text: str) -> None:
    """Replace a file whole, as secret managers do."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


async def test_a_gateway_s_token_is_read_again_when_its_file_changes(tmp_path: Path) -> None:
    """Without a restart; what cannot be used (no file, an empty one, blanks inside) leaves the one before in use."""
    path = tmp_path / "token"
    put(path, "first\n")
    settings = Settings.load({"GATEWAY_URL": "http://127.0.0.1:1", "GATEWAY_TOKEN_FILE": str(path)}, None)
    assert (settings.gateway_token, settings.gateway_token_file) == ("first", path)
    with Simulator(token="second") as simulator:
        async with Gateway("default", simulator.url, "first", timeout=5) as gateway:

            async def sent() -> Answer:
                return await gateway.send(1, 79160000000, b'"x"')

            following = asyncio.create_task(app.follow_token(gateway, path, 0.01))
            assert (await sent()).reason is Reason.UNAUTHORIZED
            put(path, "two words")
            await asyncio.sleep(0.1)
            path.unlink()
            await asyncio.sleep(0.1)
            assert gateway.token == "first"
            put(path, "second\n")
            await poll_until(lambda: gateway.token == "second")
            assert (await sent()).outcome is Outcome.ACCEPTED
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following


def test_a_token_of_the_environment_has_no_file_to_follow() -> None:
    settings = Settings.load({"GATEWAY_URL": "http://127.0.0.1:1", "GATEWAY_TOKEN": "x"}, None)
    assert settings.gateway_token_file is None


# ---- what strangers and operators are told


async def test_a_stranger_hears_that_the_database_is_away_and_the_log_hears_why(
    place: Path, api_only: dict[str, str]
) -> None:
    with Proxy(api_only["DATABASE_URL"]) as proxy:
        with started(place, *serving(), **(api_only | {"DATABASE_URL": proxy.dsn})) as one:
            url = await one.up()
            proxy.refuse()
            proxy.cut()
            for _ in range(5):
                with closing(connection(url)) as caller:
                    caller.request("GET", "/readyz")
                    answer = caller.getresponse()
                    assert answer.status == 503
                    assert json.loads(answer.read())["detail"] == "the database is unavailable"
            said = [json.loads(line) for line in one.said().splitlines()]
    told = [each["error"] for each in said if each["event"] == "not ready: the database is unavailable"]
    assert told  # and not at each question
    assert len(told) == len(set(told))


async def test_the_start_says_what_can_be_read_on_the_way(place: Path) -> None:
    gateway = {"GATEWAY_URL": "http://gateway.example.com", "GATEWAY_TOKEN": "jwt"}
    with started(place, HOST="0.0.0.0", SECRET_KEY=KEY, **gateway) as one:
        await one.up()
        said = [json.loads(line) for line in one.said().splitlines()]
    warned = [each["event"] for each in said if each["level"] == "warning"]
    for name in (
        "PUBLIC_URL: not set, and HOST is 0.0.0.0",
        "GATEWAY_URL: gateway.example.com is reached over http://",
    ):
        assert any(each.startswith(name) for each in warned), (name, warned)
