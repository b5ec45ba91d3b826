"""The one table: which handler answers where, and who may call it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import orjson
import tornado.web
from tornado.routing import PathMatches, URLSpec

from notifier.web import (
    clients,
    compress,
    files,
    gateways,
    mailings,
    messages,
    metrics,
    openapi,
    pages,
    statistics,
    system,
)
from notifier.web.application import Application
from notifier.web.auth import PUBLIC, SCOPES
from notifier.web.base import Base, NotFound, log_request
from notifier.web.context import Context
from notifier.web.safe_headers import Safe, safe_headers

VERBS = ("GET", "POST", "PATCH", "PUT", "DELETE")


@dataclass(frozen=True, slots=True)
class Route:
    """A path with names in braces, its handler, and for each of its methods the scope it takes, or `PUBLIC`.

    ``id`` and names that end in ``_id`` are positive integers; a name ``path`` may hold slashes.
    Raises ``ValueError`` for a verb without a scope, and the other way round.
    """

    path: str
    handler: type[Base]
    access: Mapping[str, str]
    given: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        refused = tornado.web.RequestHandler._unimplemented_method
        verbs = {verb for verb in VERBS if getattr(self.handler, verb.lower()) is not refused}
        if verbs != self.access.keys():
            raise ValueError(f"{self.path}: has {sorted(verbs)}, declares {sorted(self.access)}")
        if not set(self.access.values()) <= SCOPES | {PUBLIC}:
            raise ValueError(f"{self.path}: there is no such scope in {dict(self.access)}")

    def spec(self) -> URLSpec:
        pattern = re.sub(r"\\\{(\w+)\\\}", _group, re.escape(self.path))
        return URLSpec(f"{pattern}$", self.handler, {"pattern": self.path, "access": self.access, **self.given})


def _group(match: re.Match[str]) -> str:
    return f"(?P<{match[1]}>{'.+' if match[1] == 'path' else '[^/]+'})"


def read_write(noun: str, *verbs: str) -> dict[str, str]:
    """Return the access of a noun: GET with ``noun:read``, all else with ``noun:write``."""
    return {verb: f"{noun}:{'read' if verb == 'GET' else 'write'}" for verb in verbs}


PUBLIC_GET = {"GET": PUBLIC}
API = "/api/v1"

ROUTES: tuple[Route, ...] = (
    Route(f"{API}/clients", clients.Clients, read_write("clients", "GET", "POST")),
    Route(f"{API}/clients/batch", clients.ClientBatch, read_write("clients", "POST")),
    Route(f"{API}/clients/{{client_id}}", clients.Client, read_write("clients", "GET", "PATCH", "DELETE")),
    Route(f"{API}/clients/{{client_id}}/messages", messages.ClientMessages, read_write("messages", "GET")),
    Route(f"{API}/mailings", mailings.Mailings, read_write("mailings", "GET", "POST")),
    Route(f"{API}/mailings/{{mailing_id}}", mailings.OneMailing, read_write("mailings", "GET", "PATCH", "DELETE")),
    Route(f"{API}/mailings/{{mailing_id}}/start", mailings.MailingStart, read_write("mailings", "POST")),
    Route(f"{API}/mailings/{{mailing_id}}/pause", mailings.MailingPause, read_write("mailings", "POST")),
    Route(f"{API}/mailings/{{mailing_id}}/resume", mailings.MailingResume, read_write("mailings", "POST")),
    Route(f"{API}/mailings/{{mailing_id}}/cancel", mailings.MailingCancel, read_write("mailings", "POST")),
    Route(f"{API}/mailings/{{mailing_id}}/archive", mailings.MailingArchive, read_write("mailings", "POST")),
    Route(f"{API}/mailings/{{mailing_id}}/unarchive", mailings.MailingUnarchive, read_write("mailings", "POST")),
    Route(f"{API}/mailings/{{mailing_id}}/restore", mailings.MailingRestore, read_write("mailings", "POST")),
    Route(
        f"{API}/mailings/{{mailing_id}}/statistics",
        statistics.MailingStatistics,
        read_write("statistics", "GET"),
    ),
    Route(f"{API}/mailings/{{mailing_id}}/messages", messages.MailingMessages, read_write("messages", "GET")),
    Route(f"{API}/messages/{{message_id}}", messages.OneMessage, read_write("messages", "GET")),
    Route(f"{API}/messages/{{message_id}}/resolve", messages.MessageResolve, read_write("messages", "POST")),
    Route(f"{API}/statistics", statistics.Overview, read_write("statistics", "GET")),
    Route(f"{API}/gateways", gateways.Gateways, read_write("gateways", "GET")),
    Route(f"{API}/gateways/{{name}}", gateways.OneGateway, read_write("gateways", "GET", "PATCH")),
    Route(f"{API}/gateways/{{name}}/pause", gateways.GatewayPause, read_write("gateways", "POST")),
    Route(f"{API}/gateways/{{name}}/resume", gateways.GatewayResume, read_write("gateways", "POST")),
    Route("/", system.Redirect, PUBLIC_GET, {"to": "/admin/"}),
    Route("/admin", system.Redirect, PUBLIC_GET, {"to": "/admin/"}),
    Route("/admin/", pages.overview.Overview, read_write("statistics", "GET")),
    Route("/admin/login", pages.session.Login, {"GET": PUBLIC, "POST": PUBLIC}),
    Route("/admin/logout", pages.session.Logout, {"POST": PUBLIC}),
    Route("/admin/mailings", pages.mailings.Mailings, read_write("mailings", "GET", "POST")),
    Route("/admin/mailings/new", pages.mailing_form.NewMailing, {"GET": "mailings:write"}),
    Route("/admin/mailings/deleted", pages.mailings.DeletedMailings, read_write("mailings", "GET")),
    Route("/admin/mailings/{mailing_id}", pages.mailings.OneMailing, read_write("mailings", "GET")),
    Route(
        "/admin/mailings/{mailing_id}/edit",
        pages.mailing_form.EditMailing,
        {"GET": "mailings:write", "POST": "mailings:write"},
    ),
    Route(
        "/admin/mailings/{mailing_id}/{verb}",
        pages.mailings.MailingAction,
        {"GET": "mailings:write", "POST": "mailings:write"},
    ),
    Route("/admin/messages/{message_id}", pages.messages.OneMessage, read_write("messages", "GET")),
    Route("/admin/messages/{message_id}/resolve", pages.messages.ResolveMessage, read_write("messages", "POST")),
    Route("/admin/clients", pages.clients.Clients, read_write("clients", "GET", "POST")),
    Route("/admin/clients/new", pages.clients.NewClient, {"GET": "clients:write"}),
    Route("/admin/clients/{client_id}", pages.clients.OneClient, read_write("clients", "GET", "POST")),
    Route(
        "/admin/clients/{client_id}/delete",
        pages.clients.DeleteClient,
        {"GET": "clients:write", "POST": "clients:write"},
    ),
    Route("/admin/gateways/{name}", pages.gateways.OneGateway, read_write("gateways", "GET", "POST")),
    Route("/admin/gateways/{name}/{verb}", pages.gateways.GatewayAction, read_write("gateways", "POST")),
    Route("/admin/release", pages.release.Release, {"GET": "gateways:write", "POST": "gateways:write"}),
    Route("/admin/{path}", pages.Nowhere, PUBLIC_GET),
    Route("/docs", system.Redirect, PUBLIC_GET, {"to": "/docs/"}),
    Route("/docs/", system.Docs, PUBLIC_GET),
    Route("/openapi.json", system.OpenAPI, PUBLIC_GET),
    Route("/healthz", system.Health, PUBLIC_GET),
    Route("/readyz", system.Ready, PUBLIC_GET),
    Route("/metrics", system.Metrics, PUBLIC_GET),
    Route("/static/{path}", system.Static, PUBLIC_GET),
)


def _grouped(routes: tuple[Route, ...]) -> list[Any]:
    """Return the rules with those below a common prefix in a group, so that a request is held against few of them."""
    groups: dict[str, list[URLSpec]] = {f"{API}/": [], "/admin/": [], "": []}
    for route in routes:
        groups[next(prefix for prefix in groups if route.path.startswith(prefix))].append(route.spec())
    others = groups.pop("")
    return [*((PathMatches(f"{prefix}.*"), specs) for prefix, specs in groups.items()), *others]


def make_application(context: Context, routes: tuple[Route, ...] = ROUTES) -> Application:
    """Return the application, for a `Server`; our own files are read now."""
    files.docs()
    return Application(
        _grouped(routes),
        default_handler_class=NotFound,
        log_function=log_request,
        transforms=[
            cast("type[tornado.web.OutputTransform]", partial(Safe, safe_headers(context.public))),
            compress.Gzip,
        ],
        cookie_secret=context.secret_key,
        context=context,
        exposition=metrics.Exposition(context.db, context.hold, has_gateway=context.gateway.url is not None),
        openapi=files.made(
            "openapi.json", orjson.dumps(openapi.describe(routes, context.version, context.public.url or "/"))
        ),
    )
