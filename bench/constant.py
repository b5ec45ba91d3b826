"""A Tornado that answers every request with the same JSON, on a free port of the loopback that it prints."""

from __future__ import annotations

import asyncio

import uvloop
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

ANSWER = b'{"id":1,"phone":"+79000000001","operator_code":"900","tags":["vip"],"timezone":"Europe/Moscow","version":1}'


class Constant(RequestHandler):
    def get(self) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(ANSWER)

    post = get

    def check_xsrf_cookie(self) -> None:
        """There are no forms."""


async def main() -> None:
    sockets = bind_sockets(0, "127.0.0.1")
    HTTPServer(Application([(".*", Constant)], log_function=lambda _: None)).add_sockets(sockets)
    print(f"http://127.0.0.1:{sockets[0].getsockname()[1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
