"""One gateway: its connections, and a request. Nothing it does raises, whatever comes back."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import re
from collections import deque
from typing import Self

from yarl import URL

from notifier import __version__, hosts
from notifier.delivery.answers import Answer, classify, classify_error, classify_unsent, without_phone
from notifier.delivery.connect import Endpoint
from notifier.delivery.http import Wire
from notifier.models import Reason

CONNECT_TIMEOUT = 3.0  # seconds for name, TCP and TLS together; a gateway that takes longer is away
# Seconds that a connection may have been idle and be used again: under the shortest time that a server can be set to in
# whole seconds, or a request may cross with the other side's end. A server that says `Keep-Alive: timeout=…` is
# believed, up to the second figure; one that is seen to close earlier, or loses a request, sets a shorter time.
KEEP_ALIVE, KEEP_ALIVE_MOST = 0.9, 15.0
# A connection that was idle for so long (seconds) is looked at once more before it is used; under load none is.
LOOK_AFTER = 0.05
# A server that closes earlier than so many seconds after an answer does not do it for idleness.
IDLE_LEAST = 0.5
SECRET_LEAST = 8  # characters of a token that is looked for in a gateway's words
# Seconds. A request was lost on a connection that was used before: the gateway may close them without a word, so each
# request has its own for so long, twice as long each time, until a second one on a connection is answered.
APART = (5.0, 300.0)


class Gateway:
    """Connections of its own with one gateway; made inside a running loop, closed with `close`.

    ``timeout`` is for a whole request, in seconds. No cookies, no proxies from the environment, no redirects.
    ``key`` makes `identity` of address and token, which replicas compare over the database.
    """

    def __init__(self, name: str, url: str, token: str, *, timeout: float, key: bytes = b"") -> None:
        self.name = name
        self.url = url
        self._key = key
        base = URL(url.rstrip("/") + "/v1/send/")
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._in_address = tuple(hosts.secrets_in(url))
        # under the whole request's, so that what was surely not sent is known to be so
        self._endpoint = Endpoint(base, min(CONNECT_TIMEOUT, timeout * 0.8))
        self._idle: deque[tuple[Wire, float]] = deque()  # since when, by the loop's time; the last used at the end
        self._tidying: asyncio.TimerHandle | None = None
        self._apart, self._apart_until = APART[0], 0.0
        self._promised: float | None = None  # seconds that the server says it keeps an idle connection
        self._closes_after = math.inf  # seconds of idleness after which it was seen to close one
        self._start = f"POST {base.raw_path}".encode()
        self._host = base.host_port_subcomponent
        self.use(token)

    def use(self, token: str) -> None:
        """Send with this token from now on."""
        self.token = token
        # a gateway may repeat both; what is shorter than a word could be any
        self._secrets = (*self._in_address, *([token] if len(token) >= SECRET_LEAST else []))
        self._headers = (
            f" HTTP/1.1\r\nHost: {self._host}\r\nAuthorization: Bearer {token}\r\n"
            f"User-Agent: notifier/{__version__}\r\nAccept: application/json\r\nAccept-Encoding: identity\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self.identity = hmac.digest(self._key, f"gateway {self.url} {token}".encode(), hashlib.sha256).hex()[:32]

    async def close(self) -> None:
        """Close all connections."""
        if self._tidying is not None:
            self._tidying.cancel()
        self._idle.clear()
        self._endpoint.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def send(self, message_id: int, phone: int, text: bytes) -> Answer:
        """POST one message and classify what comes back; ``text`` is JSON. Raises nothing but CancelledError."""
        body = b'{"id":%d,"phone":%d,"text":%b}' % (message_id, phone, text)
        request = b"%b%d%b%d\r\n\r\n%b" % (self._start, message_id, self._headers, len(body), body)
        deadline = self._loop.time() + self._timeout
        reused, idle = self._reused()
        try:
            wire = reused or await self._endpoint.connect()
        except Exception as error:  # whatever a stranger's server makes a library do
            return classify_unsent(error, self._secrets)
        try:
            response = await wire.request(request, deadline)
            if reused:
                self._apart = APART[0]
            if wire.reusable:
                self._keep(wire, response.headers.get("Keep-Alive"))
            return without_phone(classify(response, self._secrets), phone)
        except Exception as error:
            answer = without_phone(classify_error(error, self._secrets), phone)
            if reused and answer.reason is Reason.RESET:
                self._learn(idle)
                self._keep_apart()
            return answer

    def _reused(self) -> tuple[Wire | None, float]:
        """The idle connection that was used last, and for how many seconds it was idle; None where there is none.

        The last used, so that those beyond what is needed stay idle and are closed.
        """
        now = self._loop.time()
        while self._idle:
            wire, idle_since = self._idle.pop()
            idle = now - idle_since
            if wire.reusable and idle <= self._keep_for() and (idle < LOOK_AFTER or wire.is_quiet()):
                return wire, idle
            self._let_go(wire, idle_since)
        return None, 0.0

    def _keep_for(self) -> float:
        """Seconds that an idle connection may be used again."""
        promised = KEEP_ALIVE if self._promised is None else min(KEEP_ALIVE_MOST, self._promised * 0.8)
        return min(promised, self._closes_after * 0.75)

    def _let_go(self, wire: Wire, idle_since: float) -> None:
        """Close it; where the other side had done so, that tells how long it keeps one."""
        if wire.ended_at is not None:
            self._learn(wire.ended_at - idle_since)
        wire.close()

    def _learn(self, idle: float) -> None:
        """The other side closes a connection that was idle for so long."""
        if idle >= IDLE_LEAST:
            self._closes_after = min(self._closes_after, idle)

    def _keep(self, wire: Wire, promise: str | None) -> None:
        found = promise and _KEEP_ALIVE_TIMEOUT.search(promise)
        self._promised = float(found[1]) if found else None
        if self._endpoint.closed or self._loop.time() < self._apart_until:
            wire.close()
            return
        self._idle.append((wire, self._loop.time()))
        if self._tidying is None:
            self._tidying = self._loop.call_later(self._keep_for(), self._tidy)

    def _keep_apart(self) -> None:
        if self._loop.time() >= self._apart_until:  # else it is one of those that were under way together
            self._apart_until = self._loop.time() + self._apart
            self._apart = min(APART[1], self._apart * 2)
        while self._idle:
            self._idle.pop()[0].close()

    def _tidy(self) -> None:
        """Close what was idle for long, or was closed by the gateway."""
        keep_for = self._keep_for()
        since = self._loop.time() - keep_for
        while self._idle and (self._idle[0][1] <= since or not self._idle[0][0].reusable):
            self._let_go(*self._idle.popleft())
        self._tidying = self._loop.call_later(keep_for, self._tidy) if self._idle else None


_KEEP_ALIVE_TIMEOUT = re.compile(r"timeout\s*=\s*(\d{1,6})", re.IGNORECASE)
