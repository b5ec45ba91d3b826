"""What strangers send to get past the proxies of deploy/: other spellings of closed paths, and requests in requests."""

from __future__ import annotations

import json
import re
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from chaos.stage import PATIENCE, until
from tests.processes import TOKEN, started
from tests.test_deploy import HOST, LOGINS, PROXIES, SITE, Front, in_front

SILENCE = 1.0
"""Seconds after which a proxy that waits for the rest of a body is left; what it does is judged by the logs."""

SPELLINGS = [
    "{path}", "{path}?x", "{path}?", "{path}/", "/{path}", "//{path}", "{path};x", "{path}#x", "{path}%23x",
    "{path}%3Fx", "{path}%00", "{path}%20", "{path}/.", "/./{path}", "/x/..{path}", "/%2e%2e{path}",
    "{prefix}/admin/..{path}", "{prefix}/admin/%2e%2e{path}", "{prefix}{path}", "{prefix}{prefix}{path}",
    "{prefix}/{path}", "{prefix}/.{path}", "{prefix}/static/..%2f{inner}", "{prefix}/%{first}{rest}", "{upper}",
    "{path}\\", "{prefix}\\{inner}", "{inner}", "https://{host}{path}", "https://{host}{path}?x",
    "https://{host}{path}#x", "https://{host}{path}#", "HTTP://{host}{path}", "https://{host}:443{path}",
    "https://x@{host}{path}", "https://{host}/{path}", "https://{host}{prefix}{path}", "https://{host}{path}\t",
    "https://{host}\t{path}", "https://elsewhere{path}",
]  # fmt: skip
"""Ways to write a path: ``path`` with the prefix, ``inner`` without it and its slash."""


def exchange(front: Front, host: str, sent: bytes, patience: float) -> str:
    """Send bytes over TLS and return what comes until the other side closes, or is silent for ``patience`` seconds."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    received = b""
    with (
        socket.create_connection(("127.0.0.1", front.https), 20) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
        suppress(OSError),  # also TimeoutError
    ):
        connection.sendall(sent)
        connection.settimeout(patience)
        while data := connection.recv(65_536):
            received += data
    return received.decode("latin-1")


@pytest.mark.parametrize(("host", "prefix"), [(HOST, ""), (SITE, "/notifier")], ids=["host", "prefix"])
@pytest.mark.parametrize("proxy", PROXIES)
async def test_no_spelling_of_a_path_gets_past_the_rules_for_it(
    place: Path, proxy: str, host: str, prefix: str
) -> None:
    """Metrics are shown under none; the log-in answers only to what the proxy's limit counts."""
    settings = {"PUBLIC_URL": f"https://{host}{prefix}", "TRUSTED_PROXIES": "127.0.0.1", "ROLE": "api"}
    with started(place, BOOTSTRAP_TOKEN=TOKEN, **settings) as service:
        port = int((await service.up()).rpartition(":")[2])
        with in_front(PROXIES[proxy], place, port) as front:

            def shown(target: str, method: str = "GET") -> str:
                head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                return exchange(front, host, head.encode(), PATIENCE)

            def spelled(inner: str) -> list[str]:
                names = {
                    "path": f"{prefix}/{inner}",
                    "upper": f"{prefix}/{inner.upper()}",
                    "prefix": prefix,
                    "host": host,
                    "inner": inner,
                    "first": f"{ord(inner[0]):x}",
                    "rest": inner[1:],
                }
                return [each.format_map(names) for each in SPELLINGS]

            with ThreadPoolExecutor(8) as pool:
                metrics = dict(zip(spelled("metrics"), pool.map(shown, spelled("metrics")), strict=True))
                assert [target for target, answer in metrics.items() if "notifier_" in answer] == []
                forms = dict(zip(spelled("admin/login"), pool.map(shown, spelled("admin/login")), strict=True))
                found = [target for target, answer in forms.items() if 'name="token"' in answer]
                assert f"{prefix}/admin/login" in found
                if proxy != "caddy":  # which has no limits
                    for target in found:
                        answers = list(pool.map(lambda each: shown(each, "POST"), [target] * LOGINS))
                        assert [each for each in answers if re.match(r"HTTP/1.1 429(?!.*Notifier)", each, re.S)], target


def chunked(head: str, hidden: str, chunks: str = "0\r\n\r\n") -> str:
    """Refused by the service where it reads chunks; what follows them is ``hidden``."""
    return f"POST /first HTTP/1.1\r\nHost: {{host}}\r\n{head}\r\n\r\n{chunks}{hidden}"


HIDDEN = "GET /smuggled/{number} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
TE, CL = "Transfer-Encoding: chunked", "Content-Length: {hidden}"
FIRST = "POST /first HTTP/1.1\r\nHost: {host}\r\n"
PAYLOADS = {
    "two requests": f"GET /first HTTP/1.1\r\nHost: {{host}}\r\n\r\n{HIDDEN}",
    "CL.TE": chunked(f"Content-Length: 6\r\n{TE}", HIDDEN),
    "CL.TE, all of it the body": chunked(f"{CL}\r\n{TE}", HIDDEN),
    "TE.CL": chunked(f"{TE}\r\nContent-Length: 4", "", f"{{size:x}}\r\n{HIDDEN}\r\n0\r\n\r\n"),
    "two codings": chunked(f"{TE}\r\nTransfer-Encoding: identity\r\n{CL}", HIDDEN),
    "an unknown coding": chunked(f"Transfer-Encoding: xchunked\r\n{CL}", HIDDEN),
    "a list of codings": chunked(f"Transfer-Encoding: identity, chunked\r\n{CL}", HIDDEN),
    "chunked twice": chunked(f"Transfer-Encoding: chunked, chunked\r\n{CL}", HIDDEN),
    "a tab before the coding": chunked(f"Transfer-Encoding:\tchunked\r\n{CL}", HIDDEN),
    "a vertical tab": chunked(f"Transfer-Encoding:\x0bchunked\r\n{CL}", HIDDEN),
    "in quotes": chunked(f'Transfer-Encoding: "chunked"\r\n{CL}', HIDDEN),
    "a space before the colon": chunked(f"Transfer-Encoding : chunked\r\n{CL}", HIDDEN),
    "a space before the length's colon": chunked("Content-Length : 6", HIDDEN),
    "an underscore": chunked(f"Transfer_Encoding: chunked\r\n{CL}", HIDDEN),
    "a folded coding": chunked(f"Transfer-Encoding:\r\n chunked\r\n{CL}", HIDDEN),
    "a folded header": chunked(f"X: y\r\n {TE}\r\n{CL}", HIDDEN),
    "a first line that is folded": FIRST.replace("Host", " X: y\r\nHost") + f"{CL}\r\n\r\n{HIDDEN}",
    "a bare line feed": chunked(f"X: y\n{TE}\r\n{CL}", HIDDEN),
    "a bare carriage return": chunked(f"X: y\r{TE}\r\n{CL}", HIDDEN),
    "a NUL in a name": chunked(f"Transfer-Encoding\0: chunked\r\n{CL}", HIDDEN),
    "a NUL in a value": chunked(f"X: \0y\r\n{CL}", HIDDEN),
    "two lengths": FIRST + f"Content-Length: 0\r\n{CL}\r\n\r\n{HIDDEN}",
    "two lengths in one": FIRST + f"Content-Length: 0, {{hidden}}\r\n\r\n{HIDDEN}",
    "a length with a sign": FIRST + f"Content-Length: +{{hidden}}\r\n\r\n{HIDDEN}",
    "a length in base 16": FIRST + f"Content-Length: 0x{{hidden}}\r\n\r\n{HIDDEN}",
    "a length below 0": FIRST + f"Content-Length: -1\r\n\r\n{HIDDEN}",
    "a length of other digits": FIRST + f"Content-Length: \u0661\r\n\r\n{HIDDEN}",
    "a length for GET": f"GET /first HTTP/1.1\r\nHost: {{host}}\r\n{CL}\r\n\r\n{HIDDEN}",
    "chunks in HTTP/1.0": chunked(f"{TE}\r\n{CL}", HIDDEN).replace("1.1", "1.0", 1),
    "a bare line feed in an extension": chunked(TE, "", f"1;a\nx\r\n0\r\n\r\n{HIDDEN}\r\n0\r\n\r\n"),
    "a bare line feed after a size": chunked(TE, "", f"5\nabcde\n0\n\n{HIDDEN}"),
    "a size with a sign": chunked(TE, HIDDEN, "+0\r\n\r\n"),
    "a size in base 16": chunked(TE, HIDDEN, "0x0\r\n\r\n"),
    "a size beyond 64 bits": chunked(TE, HIDDEN, "10000000000000000\r\n\r\n"),
    "a chunk longer than its size": chunked(TE, HIDDEN, "1\r\nabc\r\n0\r\n\r\n"),
    "trailers": chunked(TE, HIDDEN, f"0\r\n{CL}\r\nTransfer-Encoding: identity\r\n\r\n"),
    "a trailer without a colon": chunked(TE, HIDDEN, "0\r\nnonsense\r\n\r\n"),
    "Expect, refused by the head": FIRST + f"{CL}\r\nExpect: 100-continue\r\n\r\n{HIDDEN}",
    "Expect with chunks": chunked(f"{TE}\r\nExpect: 100-continue", HIDDEN),
    "after a refused body": FIRST + f"Content-Length: 9000000\r\nContent-Type: application/json\r\n\r\n{HIDDEN}",
    "the length hidden by Connection": FIRST + f"{CL}\r\nConnection: close, Content-Length\r\n\r\n{HIDDEN}",
    "the absolute form with another host": f"GET http://elsewhere/first HTTP/1.1\r\nHost: {{host}}\r\n\r\n{HIDDEN}",
    "a request in the address": f"GET /first%20HTTP/1.1%0d%0aHost:%20{{host}}%0d%0a%0d%0a{HIDDEN}",
    "a request in a header": f"GET /first HTTP/1.1\r\nHost: {{host}}\r\nX: y\r\r\n\r\n{HIDDEN}",
    "HTTP/2 by its preface": f"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{HIDDEN}",
    "an upgrade": f"GET /first HTTP/1.1\r\nHost: {{host}}\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n{HIDDEN}",
}  # fmt: skip
"""Requests with another one in them: to one reader it is a body, to another a request."""


def payload(kind: str) -> bytes:
    names: dict[str, object] = {"number": list(PAYLOADS).index(kind), "host": HOST}
    size = len(HIDDEN.format_map(names))
    return PAYLOADS[kind].format_map(names | {"hidden": size, "size": size}).encode()


@pytest.mark.parametrize("proxy", ["nginx", "haproxy"])
async def test_no_request_gets_past_a_proxy_inside_another(place: Path, proxy: str) -> None:
    """What the service answers the proxy has counted, and nobody gets an answer that is another's."""
    log = place / ("access.log" if proxy == "nginx" else "proxy.log")

    def logging(folder: Path, backend: int, https: int, plain: int) -> list[str]:
        command = PROXIES[proxy](folder, backend, https, plain)
        if proxy == "nginx":
            file = folder / "nginx.conf"
            file.write_text(file.read_text().replace("access_log off;", f"access_log {log};"))
        return command

    settings = {"PUBLIC_URL": f"https://{HOST}", "TRUSTED_PROXIES": "127.0.0.1", "ROLE": "api"}
    with started(place, BOOTSTRAP_TOKEN=TOKEN, **settings) as service:
        port = int((await service.up()).rpartition(":")[2])
        with in_front(logging, place, port) as front:

            def attacked(kind: str) -> None:
                exchange(front, HOST, payload(kind), SILENCE)
                # Through the connections to the service that are kept open: /smuggled would be a 404.
                for number in range(3):
                    answer = front.call(f"/readyz?{number}")
                    assert (answer.status, answer.text) == (200, ready), kind

            def answered(path: str) -> int:
                events = [json.loads(line) for line in service.said().splitlines() if line.startswith("{")]
                return sum(each["event"] == "request" and each["path"] == path for each in events)

            def counted(path: str) -> int:
                return len(re.findall(rf"GET (?:https?://[^/ ]*)?{path} HTTP", log.read_text(errors="replace")))

            def uncounted() -> list[str]:
                paths = {kind: f"/smuggled/{number}" for number, kind in enumerate(PAYLOADS)}
                return [kind for kind, path in paths.items() if answered(path) > counted(path)]

            ready = front.call("/readyz").text
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(attacked, PAYLOADS))
            # Two requests that are no attack are seen in both logs, so others would be.
            exchange(front, HOST, payload("two requests"), PATIENCE)
            until(lambda: answered("/smuggled/0") and counted("/smuggled/0"))
            until(lambda: not uncounted(), progress=uncounted)
