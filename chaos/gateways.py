"""Gateways that are down, slow, lying or closed to us: rows 7 and 8 of the fault matrix, and a long outage."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from chaos.stage import Replica, Stage, on_stage, until
from chaos.verdict import WATCH_EVERY, Figures, Row, Watched, judge, timed, together, watching

# Every answer is looked at by itself: without these the breaker would hold the second dozen of messages back, a row of
# refusals would stop the gateway, and retries would run into the next answer.
ONE_BY_ONE = {
    "delivery.limits.TRIP_AFTER": 10**9,
    "delivery.limits.REFUSED_IN_A_ROW": 10**9,
    "policy.BASE": 3_600.0,
    "policy.CAP": 7_200.0,
}
# Breaker and backoff at a tenth, so that an outage of one minute stands for one of ten.
A_TENTH = {
    "storage.gateways.OPEN_SECONDS": 1,
    "storage.gateways.OPEN_CAP": 30,
    "policy.BASE": 0.2,
    "policy.CAP": 30.0,
}
GROWTH = 20 * 2**20
"""Bytes that the memory of a process may grow by, whatever a gateway sends."""


class Lie(NamedTuple):
    """What a gateway does instead of keeping the contract, and what the books shall say of it."""

    do: dict[str, Any]
    outcome: str
    status: str


def _status(status: int, **more: Any) -> dict[str, Any]:
    return {"kind": "status", "status": status, **more}


def _body(text: str) -> dict[str, Any]:
    return {"kind": "body", "text": text}


def _bytes(content: bytes) -> dict[str, Any]:
    return {"kind": "body", "base64": base64.b64encode(content).decode()}


UNKNOWN, FAILED, RETRYING = ("unknown", "retrying"), ("rejected", "failed"), ("unavailable", "retrying")
THROTTLED, MISCONFIGURED = ("throttled", "retrying"), ("misconfigured", "retrying")

LIES: Mapping[str, Lie] = {
    **{str(status): Lie(_status(status), *FAILED) for status in (400, 406, 409, 410, 422, 499)},
    **{str(status): Lie(_status(status), *UNKNOWN) for status in (201, 204, 408, 500, 501, 502, 504, 520, 599)},
    **{str(status): Lie(_status(status), *RETRYING) for status in (407, 503, 511)},
    "503 with Retry-After": Lie(_status(503, headers={"Retry-After": "1"}), *RETRYING),
    "429 without a time": Lie(_status(429), *THROTTLED),
    "429, seconds": Lie(_status(429, headers={"Retry-After": "1"}), *THROTTLED),
    "429, a date long gone": Lie(_status(429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), *THROTTLED),
    "429, nonsense": Lie(_status(429, headers={"Retry-After": "soon"}), *THROTTLED),
    **{str(status): Lie(_status(status), *MISCONFIGURED) for status in (401, 402, 403, 404, 405, 413, 414, 431, 451)},
    **{
        str(status): Lie(_status(status, headers={"Location": "/login"}), *MISCONFIGURED)
        for status in (301, 302, 303, 307, 308)
    },
    "another code": Lie({"kind": "code", "code": 17, "message": "busy"}, "declined", "retrying"),
    "an error body": Lie(_body('{"error": "down"}'), *UNKNOWN),
    "HTML": Lie(_body("<html>log in</html>"), *UNKNOWN),
    "truncated JSON": Lie(_body('{"code": 0, "mess'), *UNKNOWN),
    "a code of the wrong type": Lie(_body('{"code": "0"}'), *UNKNOWN),
    "NaN": Lie(_body('{"code": NaN}'), *UNKNOWN),
    "nothing": Lie(_body(""), *UNKNOWN),
    "invalid UTF-8": Lie(_bytes(b'{"code": 0, "message": "\xff"}'), *UNKNOWN),
    "NUL": Lie(_bytes(b"\x00\x00"), *UNKNOWN),
    "JSON a hundred thousand deep": Lie(_body("[" * 60_000), *UNKNOWN),
    "a gigabyte": Lie({"kind": "huge"}, *UNKNOWN),
    "a gzip bomb": Lie({"kind": "gzip_bomb"}, *UNKNOWN),
    "headers without end": Lie({"kind": "endless_headers"}, *UNKNOWN),
    "too short a body": Lie({"kind": "wrong_length"}, *UNKNOWN),
    "a broken chunk": Lie({"kind": "chunked_broken"}, *UNKNOWN),
    "a reset after the request": Lie({"kind": "reset"}, *UNKNOWN),
    "a reset after it was taken": Lie({"kind": "reset", "accept": True}, *UNKNOWN),
    "no answer": Lie({"kind": "hang"}, *UNKNOWN),
    "a byte a second": Lie({"kind": "drip"}, *UNKNOWN),
}


def memory(replica: Replica) -> int:
    """Bytes of memory that are the process's own."""
    for line in Path(f"/proc/{replica.process.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("this system does not say how much memory a process has")


def _outcomes(stage: Stage, mailing: int) -> dict[tuple[str, str], int]:
    rows = stage.database.query(
        "SELECT outcome::text, state::text, count(*) AS n FROM attempts WHERE mailing_id = %s AND outcome <> "
        "'not_started' GROUP BY 1, 2",
        mailing,
    )
    shown = {"doubtful": "retrying"}
    return {(row["outcome"], shown.get(row["state"], row["state"])): row["n"] for row in rows}


def lies(names: tuple[str, ...] = tuple(LIES), clients: int = 40) -> Figures:
    """One mailing to so many clients for every lie: each is booked as it should be, memory and API are unmoved."""
    with on_stage() as stage:
        replica = stage.replica(constants=ONE_BY_ONE, gateway_timeout=2, gateway_concurrency=clients)
        stage.clients(clients)
        warm = stage.mailing(replica)
        stage.done(warm)
        until(lambda: replica.call("GET", "/api/v1/statistics").status == 200)
        before = most = memory(replica)
        with watching(stage) as watched:
            for name in names:
                _tell(stage, replica, name, clients)
                most = max(most, memory(replica))
        figures = judge(stage, watched)
        assert most - before < GROWTH, f"memory grew by {(most - before) / 2**20:.0f} MB"
        figures.notes.append(f"memory + {(most - before) / 2**20:.1f} MB over {len(names)} lies")
        return figures


def _tell(stage: Stage, replica: Replica, name: str, clients: int) -> None:
    """Have everybody lied to once, look at the books, and let the gateway work again."""
    lie = LIES[name]
    stage.gateway.script({"do": lie.do})
    mailing = stage.mailing(replica, name=name)
    # A pause of the gateway keeps those back who had no attempt yet; one is enough to see how it is booked.
    enough = 1 if lie.outcome in ("throttled", "misconfigured") else clients
    booked = (lie.outcome, lie.status)
    try:
        until(lambda: _outcomes(stage, mailing).get(booked, 0) >= enough)
    except AssertionError:
        raise AssertionError(f"{name}: {_outcomes(stage, mailing)} instead of {booked}") from None
    assert _outcomes(stage, mailing).keys() == {booked}, f"{name}: {_outcomes(stage, mailing)}"
    if lie.outcome == "misconfigured":
        state = replica.call("GET", "/api/v1/gateways/default").body
        assert state["state"] == "misconfigured", f"{name}: {state}"
    # 409: everybody has failed for good, so the mailing is finished
    assert replica.call("POST", f"/api/v1/mailings/{mailing}/cancel").status in (200, 409)
    stage.gateway.reset()
    until(lambda: stage.database.value("SELECT count(*) = 0 FROM batches WHERE owner IS NOT NULL"))
    if lie.outcome == "misconfigured":
        assert replica.call("POST", "/api/v1/gateways/default/resume").status == 200
    until(lambda: stage.database.value("SELECT coalesce(paused_until < now(), true) FROM gateways"))


def refused(clients: int = 100) -> Figures:
    """The gateway's process is gone, then back: nobody loses a chance, and nothing is in doubt."""
    with on_stage() as stage:
        replica = stage.replica(constants=A_TENTH, gateway_timeout=2)
        stage.clients(clients)
        stage.gateway.stop()
        with watching(stage) as watched:
            mailing = stage.mailing(replica)
            until(lambda: stage.database.value("SELECT openings >= 2 FROM gateways"))
            stage.gateway.start()
            stage.done(mailing)
        figures = judge(stage, watched)
        assert figures.sent == clients, figures
        assert figures.in_doubt == 0, figures
        return figures


def hanging(clients: int = 3_000, seconds: float = 20.0, timeout: int = 15) -> Figures:
    """Every request hangs until its timeout: the API answers as ever."""
    with on_stage() as stage:
        never = {"delivery.limits.TRIP_AFTER": 10**9}
        replica = stage.replica(constants=never, gateway_concurrency=200, gateway_timeout=timeout)
        stage.clients(clients)
        stage.gateway.script({"do": {"kind": "hang"}})
        stage.mailing(replica)
        # Half of what may be: where connections are made slowly the first have given up before the last are there.
        until(lambda: stage.gateway.state()["in_flight"] >= min(200, clients) / 2)
        with watching(stage) as watched:
            until(lambda: len(watched.latencies) >= seconds / WATCH_EVERY, progress=lambda: len(watched.latencies))
        assert stage.gateway.state()["in_flight"] > 0, "nothing hangs any more"
        return _calm(stage, replica, watched)


def _calm(stage: Stage, replica: Replica, watched: Watched) -> Figures:
    """End what runs, let what hangs come back, and judge."""
    for mailing in stage.database.query("SELECT id FROM mailings WHERE status = 'running'"):
        assert replica.call("POST", f"/api/v1/mailings/{mailing['id']}/cancel").status == 200
    until(lambda: stage.database.value("SELECT count(*) = 0 FROM batches WHERE owner IS NOT NULL"))
    figures = judge(stage, watched)
    figures.notes.append(f"API p99 {watched.p99 * 1000:.0f} ms")
    return figures


def outage(clients: int = 2_000, seconds: float = 60.0) -> Figures:
    """The gateway answers 500 to everybody for a long time: when it is back everybody is sent, soon."""
    with on_stage(gateway={"latency": 5}) as stage:
        replica = stage.replica(constants=A_TENTH, gateway_timeout=2)
        stage.clients(clients)
        stage.gateway.script({"do": _status(503)})
        with watching(stage) as watched:
            mailing = stage.mailing(replica)
            until(lambda: len(watched.latencies) >= seconds / WATCH_EVERY, progress=lambda: len(watched.latencies))
            row = "SELECT extract(epoch FROM retry_at - now())::float AS left, openings FROM gateways"
            until(lambda: stage.database.query(row)[0]["left"] is not None)
            interval = min(30.0, 1.0 * 2 ** max(0, stage.database.query(row)[0]["openings"] - 1))
            stage.gateway.reset()
            first = timed(lambda: stage.numbers(mailing).get("sent", 0) > 0)
            stage.done(mailing)
        figures = judge(stage, watched)
        assert figures.sent == clients, figures
        # A probe takes a moment of its own, and the numbers are looked at over the API.
        assert first <= interval + 1.0, f"the first was sent {first:.1f} s after the recovery, probes each {interval} s"
        figures.notes.append(
            f"{seconds:.0f} s of outage, the first sent {first:.1f} s after it (probe interval {interval:.0f} s)"
        )
        return figures


def revoked(clients: int = 2_000, latency: int = 20) -> Figures:
    """The token is revoked in the middle: the gateway is stopped, nobody fails, resume sends the rest.

    ``latency`` of the gateway in milliseconds, until it is revoked.
    """
    with on_stage() as stage:
        stage.gateway.script(latency=latency)
        replica = stage.replica(gateway_concurrency=50)
        stage.clients(clients)
        with watching(stage) as watched:
            mailing = stage.mailing(replica)
            until(lambda: stage.numbers(mailing).get("sent", 0) > clients / 10)
            stage.gateway.script({"do": _status(401)}, latency=latency)
            until(lambda: replica.call("GET", "/api/v1/gateways/default").body["state"] == "misconfigured")
            until(lambda: stage.gateway.state()["in_flight"] == 0)
            asked = len(stage.gateway.entries())
            numbers = stage.numbers(mailing)
            assert not numbers.keys() & {"failed", "unknown"}, numbers
            stage.gateway.reset()
            assert len(stage.gateway.entries()) == asked, "requests went on after the first refusal was read"
            assert replica.call("POST", "/api/v1/gateways/default/resume").status == 200
            stage.done(mailing)
        figures = judge(stage, watched)
        assert figures.sent == clients, figures
        assert figures.in_doubt == 0, figures
        refusals = sum(entry.status == 401 for entry in stage.gateway.entries())
        assert refusals <= 50, f"{refusals} requests were refused, more than were in flight"
        figures.notes.append(f"{refusals} refused, 0 failed")
        return figures


ROWS = (
    Row(7, "gateway: refused, hangs, lies, floods", lambda: together([lies(), refused(), hanging(), outage()])),
    Row(8, "token revoked in the middle", revoked),
)
