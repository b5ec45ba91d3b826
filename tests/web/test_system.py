from __future__ import annotations

import asyncio
import math
import platform
import re
import time

import asyncpg
from prometheus_client.parser import text_string_to_metric_families

from notifier import __version__
from notifier.storage.database import Pool, create_pool
from notifier.storage.installation import Hold
from notifier.web.context import GatewayDefaults
from tests.storage.scenes import running
from tests.web.conftest import Api, MakeApi


async def test_health_asks_nobody_and_readiness_does(make_api: MakeApi) -> None:
    async def not_ready() -> str | None:
        return "draining"

    api = make_api(ready=not_ready)
    api.token = None
    assert (await api.get("//healthz")).status == 200
    reply = await api.get("//readyz")
    assert (reply.status, reply.json["detail"]) == (503, "draining")
    ready = make_api()
    ready.token = None
    assert (await ready.get("//readyz")).status == 200


async def test_metrics_name_routes_and_not_addresses(api: Api) -> None:
    await api.get("/clients/77123")
    await api.get("//no-such-address")
    await api.call("BREW", "//healthz")
    reply = await api.get("//metrics")
    assert reply.headers["Content-Type"].startswith("text/plain")
    text = reply.body.decode()
    labels = [
        sample.labels
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "notifier_http_requests_total"
    ]
    assert {"method": "GET", "route": "/api/v1/clients/{client_id}", "status": "404"} in labels
    assert {"method": "GET", "route": "unmatched", "status": "404"} in labels
    assert {"method": "other", "route": "/healthz", "status": "405"} in labels
    for shown in labels:
        assert "77123" not in shown["route"]
        assert "no-such-address" not in shown["route"]


async def scraped(api: Api) -> dict[str, float]:
    """Every sample of `/metrics`: its name with its labels, and its value."""
    reply = await api.get("//metrics")
    assert reply.status == 200
    return {
        ",".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
    }


async def test_metrics_see_that_sending_has_stopped(make_api: MakeApi, db: Pool) -> None:
    """A gateway that refused the token, and a message that has been due for a minute."""
    await running(db, 3)
    await db.execute("UPDATE batches SET due_at = now() - interval '60 s'")
    await db.execute("UPDATE gateways SET state = 'misconfigured'")
    shown = await scraped(make_api())
    assert shown["notifier_gateway_state,default,misconfigured"] == 1
    assert shown["notifier_gateway_state,default,running"] == 0
    assert (shown["notifier_mailings,running"], shown["notifier_mailings,paused"]) == (1, 0)
    assert (shown["notifier_messages,waiting"], shown["notifier_messages,unknown"]) == (3, 0)
    assert 60 <= shown["notifier_oldest_due_seconds"] < 120
    assert shown["notifier_database_up"] == 1
    assert shown[f"notifier_build_info,{platform.python_version()},{__version__}"] == 1
    unconfigured = make_api(gateway=GatewayDefaults(None, 100, 0.0, 15.0, "retry"))
    assert (await scraped(unconfigured))["notifier_gateway_state,default,unconfigured"] == 1


async def test_metrics_see_a_database_that_is_held_as_a_copy(make_api: MakeApi, db: Pool) -> None:
    await Hold(db, "production").begin()
    hold = Hold(db, "staging")
    await hold.begin()
    assert (await scraped(make_api(hold=hold)))["notifier_held"] == 1
    await hold.release()
    assert (await scraped(make_api(hold=hold)))["notifier_held"] == 0


async def test_scrapes_within_a_second_ask_the_database_once(api: Api, db: Pool) -> None:
    """Forty at once, and forty more: one count, or two where the machine is slow."""
    asked = 0

    def count(query: asyncpg.connection.LoggedQuery) -> None:
        nonlocal asked
        asked += "oldest_due" in query.query

    for connection in [await db.acquire() for _ in range(10)]:
        connection.add_query_logger(count)
        await db.release(connection)
    begun = time.monotonic()
    for _ in range(2):
        texts = {reply.body for reply in await asyncio.gather(*(api.get("//metrics") for _ in range(40)))}
        assert len(texts) <= 1 + int(time.monotonic() - begun)
    assert asked <= 1 + int(time.monotonic() - begun)


async def test_without_a_database_metrics_say_so_and_show_no_old_figure(make_api: MakeApi, db: Pool) -> None:
    assert "notifier_mailings,running" in await scraped(make_api())
    pool = await create_pool("postgresql://nobody@127.0.0.1:9/none", size=1, application_name="test")
    shown = await scraped(make_api(db=pool))
    pool.terminate()
    assert shown["notifier_database_up"] == 0
    assert math.isnan(shown["notifier_oldest_due_seconds"])
    assert math.isnan(shown["notifier_held"])
    assert not [name for name in shown if name.startswith(("notifier_mailings,", "notifier_gateway_state,"))]
    assert "notifier_loop_lag_seconds" in shown


async def test_the_docs_run_on_our_own_files(api: Api) -> None:
    api.token = None
    page = await api.get("//docs/")
    assert page.status == 200
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
    files = re.findall(r'(?:src|href)="[.][.](/[^"]+)"', page.body.decode())
    assert {"/admin/", "/openapi.json"} < set(files)
    assert len([path for path in files if path.startswith("/static/")]) == 6
    for path in set(files) - {"/admin/"}:
        reply = await api.get(f"/{path}")
        assert reply.status == 200
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert "<script>" not in page.body.decode()


async def test_where_the_short_addresses_lead(api: Api) -> None:
    for path, target in (("/", "/admin/"), ("/docs", "/docs/")):
        reply = await api.get(f"/{path}")
        assert (reply.status, reply.headers["Location"]) == (302, target)
