"""Where people reach the service, and who asks: the prefix, the host, and whom to believe of forwarding headers."""

from __future__ import annotations

import asyncio
import re
from ipaddress import ip_network
from pathlib import Path

import pytest
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from notifier.hosts import is_loopback
from notifier.web.addresses import Client, PublicUrl, client_of, network_of
from notifier.web.pages.templates import TEMPLATES
from tests.web.conftest import Api, MakeApi

PREFIXED = PublicUrl.of("https://notifier.example/notifier")
PROXIES = tuple(map(ip_network, ("127.0.0.1", "10.0.0.0/8", "2001:db8:1::/48")))


class Connection:
    """All that a request knows of its connection."""

    def __init__(self, peer: str) -> None:
        self.context = self
        self.remote_ip, self.protocol = peer, "http"


def client(peer: str, *forwarded: str, proto: str | None = None, others: dict[str, str] | None = None) -> Client:
    headers = HTTPHeaders({"Host": "notifier.example", **(others or {})})
    for line in forwarded:
        headers.add("X-Forwarded-For", line)
    if proto is not None:
        headers.add("X-Forwarded-Proto", proto)
    request = HTTPServerRequest(
        start_line=RequestStartLine("GET", "/", "HTTP/1.1"),
        headers=headers,
        connection=Connection(peer),  # type: ignore[arg-type]
    )
    return client_of(request, PROXIES)


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.9", (), "203.0.113.9"),
        ("203.0.113.9", ("127.0.0.1",), "203.0.113.9"),  # a stranger's header changes nothing
        ("10.0.0.5", (), "10.0.0.5"),
        ("10.0.0.5", ("203.0.113.9",), "203.0.113.9"),
        ("10.0.0.5", ("1.2.3.4, 203.0.113.9",), "203.0.113.9"),  # the left part is what the client wrote
        ("10.0.0.5", ("1.2.3.4", "203.0.113.9, 10.2.0.1"), "203.0.113.9"),  # two lines are one list
        ("10.0.0.5", ("203.0.113.9, junk, 10.2.0.1",), "10.2.0.1"),  # nobody knows what is beyond
        ("10.0.0.5", ("10.0.0.6, 10.0.0.7",), "10.0.0.6"),
        ("10.0.0.5", ("203.0.113.9:5123",), "203.0.113.9"),
        ("10.0.0.5", ("[2001:db8::7]:5123",), "2001:db8::7"),
        ("10.0.0.5", ("2001:db8::7",), "2001:db8::7"),
        ("2001:db8:1::2", ("203.0.113.9",), "203.0.113.9"),
        ("::ffff:10.0.0.5", ("203.0.113.9",), "203.0.113.9"),  # IPv4 on a socket of both families
        ("10.0.0.5", ("",), "10.0.0.5"),
        ("10.0.0.5", ("unknown",), "10.0.0.5"),
        ("10.0.0.5", (",".join(["203.0.113.9", *["10.0.0.6"] * 3000]),), "10.0.0.6"),  # no chain is so long
        ("", ("203.0.113.9",), ""),  # a Unix socket has no address
    ],
)
def test_the_client_is_the_right_most_address_that_is_no_proxy_of_ours(
    peer: str, forwarded: tuple[str, ...], address: str
) -> None:
    assert client(peer, *forwarded).address == address


def test_no_other_header_says_who_asks() -> None:
    for name in ("X-Real-Ip", "Forwarded", "X-Client-IP", "True-Client-IP", "X-Forwarded-Host", "X-Scheme"):
        assert client("10.0.0.5", others={name: "203.0.113.9"}) == Client("10.0.0.5", "http")


@pytest.mark.parametrize(
    ("peer", "proto", "scheme"),
    [
        ("10.0.0.5", "https", "https"),
        ("10.0.0.5", "http, https", "https"),
        ("10.0.0.5", "https, http", "http"),  # the right one is our proxy's
        ("10.0.0.5", "HTTPS", "https"),
        ("10.0.0.5", "wss", "http"),
        ("10.0.0.5", None, "http"),
        ("203.0.113.9", "https", "http"),
    ],
)
def test_the_scheme_is_what_a_proxy_of_ours_says(peer: str, proto: str | None, scheme: str) -> None:
    assert client(peer, proto=proto).scheme == scheme


def test_of_ipv6_a_whole_64_is_one() -> None:
    assert network_of("203.0.113.9") == "203.0.113.9"
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:0:0:2") == "2001:db8::/64"
    assert network_of("2001:db8:0:1::1") != network_of("2001:db8::1")
    assert network_of("::ffff:203.0.113.9") == "203.0.113.9"
    assert network_of("") == ""


def test_what_names_this_machine() -> None:
    for host in ("localhost", "LOCALHOST:8080", "127.0.0.1:80", "127.8.0.1", "[::1]:8080", "::1", "a.localhost"):
        assert is_loopback(host), host
    for host in ("localhost.example", "10.0.0.1", "0.0.0.0", "127.0.0.1.example:80", "[::2]", "", "[", "1270.0.0.1"):
        assert not is_loopback(host), host


def test_within_no_path_has_the_prefix() -> None:
    for uri, inside in {
        "/notifier/admin/": "/admin/",
        "/admin/": "/admin/",  # the proxy has taken it off
        "/notifier": "/",
        "/notifier/": "/",
        "/notifier?next=/notifier/": "/?next=/notifier/",
        "/notifiers": "/notifiers",
        "/notifier/notifier/": "/notifier/",
        "*": "*",
    }.items():
        assert PREFIXED.inside(uri) == inside
    assert PublicUrl().inside("/admin/?a=b") == "/admin/?a=b"


async def test_whatever_leads_outside_has_the_prefix(make_api: MakeApi) -> None:
    """Both kinds of proxies: one that takes the prefix off, and one that leaves it."""
    api = make_api(public=PREFIXED)
    api.headers["Host"] = "notifier.example"
    for before in ("", "/notifier"):
        for path, target in (("/", "/admin/"), ("/admin", "/admin/"), ("/docs", "/docs/")):
            reply = await api.get(f"/{before}{path}")
            assert (reply.status, reply.headers["Location"]) == (302, f"/notifier{target}")
        away = await api.get(f"/{before}/admin/clients?tag=a")
        assert away.headers["Location"] == "/notifier/admin/login?next=%2Fadmin%2Fclients%3Ftag%3Da"
        made = await api.post(f"/{before}/api/v1/clients", {"phone": f"7916000000{len(before)}"})
        assert re.fullmatch(r"/notifier/api/v1/clients/\d+", made.headers["Location"])
        assert (await api.get(f"/{made.headers['Location']}")).json == made.json
        assert (await api.get(f"/{before}/openapi.json")).json["servers"] == [{"url": PREFIXED.url}]
        for path in ("/healthz", "/static/admin/admin.css", "/docs/"):
            assert (await api.get(f"/{before}{path}")).status == 200
    assert (await api.get("//notifiers/healthz")).status == 404


async def test_a_repeated_request_gets_the_same_location(make_api: MakeApi) -> None:
    api = make_api(public=PublicUrl.of("http://127.0.0.1/sms"))
    for path in ("//api/v1/clients", "//sms/api/v1/clients"):  # one route, whatever the proxy does
        reply = await api.post(path, {"phone": "79160000000"}, headers={"Idempotency-Key": "one"})
        assert reply.status == 201
        assert reply.headers["Location"].startswith("/sms/api/v1/clients/")


def test_no_template_holds_an_address_without_the_prefix() -> None:
    """A link that begins with a slash would leave the prefix."""
    absolute = re.compile(r"""(?<!root }})(?<!root ~ ")(?<!\w)(?<!path != ")/(?:admin|api|docs|static)\b.*""")
    for path in sorted(TEMPLATES.rglob("*.html")):
        text = re.sub(r"<code>.*?</code>", "", path.read_text(encoding="utf-8"))
        assert absolute.findall(text) == [], path.relative_to(TEMPLATES)
    for path in sorted(Path(TEMPLATES.parent, "static", "docs").iterdir()):
        assert re.findall(r"""["'(]/\w""", path.read_text(encoding="utf-8")) == [], path.name


async def test_another_host_is_misdirected_but_for_health_and_the_machine_itself(make_api: MakeApi) -> None:
    """With https, answers go out under the public name only: a name made to lead here (DNS rebinding) gets none."""
    api = make_api(public=PREFIXED)
    for host in ("evil.example", "notifier.example.evil.example", "notifier.example:8443", "10.0.0.5:8080"):
        api.headers["Host"] = host
        for path in ("//api/v1/clients", "//admin/login", "//static/admin/admin.css", "//nothing", "//openapi.json"):
            reply = await api.get(path)
            assert reply.status == 421, (host, path)
            assert "This service is https://notifier.example/notifier" in reply.body.decode()
        large = await api.post("//api/v1/clients/batch", data=b"[" + b" " * 100_000)
        assert large.status == 421
        for path in ("//healthz", "//readyz", "//metrics"):
            assert (await api.get(path)).status == 200
    for host in ("notifier.example", "NOTIFIER.example:443", "localhost:8080", "127.0.0.1", "[::1]:1"):
        api.headers["Host"] = host
        assert (await api.get("//api/v1/clients")).status == 200, host


async def test_a_stranger_is_not_this_machine_because_the_proxy_is(make_api: MakeApi) -> None:
    api = make_api(public=PREFIXED, proxies=(ip_network("127.0.0.0/8"),))
    for given, status in (("203.0.113.9", 421), ("127.0.0.1", 200)):
        api.headers = {"Host": "localhost", "X-Forwarded-For": given}
        assert (await api.get("//api/v1/clients")).status == status, given
        large = await api.post("//api/v1/clients/batch", data=b"[" + b" " * 100_000)
        assert (large.status == 421) is (status == 421), given


async def test_with_https_every_answer_says_so(make_api: MakeApi) -> None:
    paths = ("//healthz", "//admin/login", "//", "//nothing", "//static/admin/admin.css", "//docs/", "//api/v1/clients")
    for url, header in (
        ("https://notifier.example", "max-age=31536000; includeSubDomains"),
        ("https://notifier.example/notifier", "max-age=31536000"),  # its host is not only ours
        ("http://notifier.example", None),
        (None, None),
    ):
        api = make_api(public=PublicUrl.of(url))
        for path in paths:
            reply = await api.get(path)
            assert reply.headers.get("Strict-Transport-Security") == header, (url, path)


async def test_every_answer_tells_a_browser_what_not_to_do(make_api: MakeApi) -> None:
    """Calls, errors, redirects, files, pages, and what is answered to a head that cannot be read."""
    api = make_api(public=PublicUrl.of("https://notifier.example"))
    answers = []
    for path in ("/clients", "/clients/0", "//", "//nothing", "//static/admin/admin.css", "//openapi.json", "//metrics",
                 "//docs/", "//admin/login", "//admin/", "//admin/nothing"):  # fmt: skip
        reply = await api.get(path)
        answers.append((path, {name.lower(): value for name, value in reply.headers.items()}))
    host, port = api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n")
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    writer.close()
    answers.append((head, {k.lower(): v for k, _, v in (line.partition(": ") for line in head.split("\r\n"))}))
    for path, headers in answers:
        assert headers["content-security-policy"].startswith("default-src 'none'; "), path
        assert "frame-ancestors 'none'" in headers["content-security-policy"], path
        assert "'unsafe-eval'" not in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["referrer-policy"] == headers["cross-origin-opener-policy"] == "same-origin", path
        assert headers["cross-origin-resource-policy"] == "same-origin", path
        assert "camera=()" in headers["permissions-policy"], path
        assert headers["strict-transport-security"].startswith("max-age=31536000"), path


async def test_without_a_public_address_any_host_will_do(api: Api) -> None:
    api.headers["Host"] = "anything.example"
    assert (await api.get("/clients")).status == 200
