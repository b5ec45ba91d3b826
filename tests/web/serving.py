"""Applications of handlers that a test makes."""

from __future__ import annotations

from functools import partial

import tornado.web

from notifier.web.application import Application
from notifier.web.handlers import Handler
from notifier.web.operations import operation
from notifier.web.routes import API, Route, make_application


def raises(error: BaseException) -> type[Handler]:
    class Raises(Handler):
        @operation()
        async def get(self) -> None:
            raise error

    return Raises


def serving(**handlers: type[Handler]) -> partial[Application]:
    routes = tuple(
        Route(
            f"{API}/{path}",
            handler,
            {
                verb: "clients:write"
                for verb in ("GET", "POST", "PATCH")
                if getattr(handler, verb.lower()) is not tornado.web.RequestHandler._unimplemented_method
            },
        )
        for path, handler in handlers.items()
    )
    return partial(make_application, routes=routes)
