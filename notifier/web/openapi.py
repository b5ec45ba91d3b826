"""The OpenAPI 3.1 document: made from the route table and the operations, so from what checks and answers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Protocol

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema

from notifier.models import INT64_MAX
from notifier.web import schemas
from notifier.web.base import PUBLIC, Base, Operation, operation_of

DESCRIPTION = """
Texts to many clients at the right time. Press **Authorize** and give a token; then open a call, fill it in and press
**Execute**.

Times are RFC 3339, in with an offset, out in UTC. Lists end when `next_cursor` is null, and only then. Errors are
[RFC 9457](https://www.rfc-editor.org/rfc/rfc9457) problems whose `errors` point at what is wrong.
"""
PROBLEM = "application/problem+json"
HEADERS = {
    "IdempotencyKey": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "The same key and body within 24 h: the same answer again, and nothing done twice.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    },
    "IfMatch": {
        "name": "If-Match",
        "in": "header",
        "description": "The ETag read last; 412 when somebody has edited since.",
        "schema": {"type": "string", "pattern": r'^(\*|"[0-9]+")$', "example": "*"},
    },
}
TYPES: dict[type, tuple[str | None, str | None]] = {
    schemas.Moment: ("string", "date-time"),
    schemas.Phone: ("string", None),
    schemas.Cursor: ("string", None),
}


class _Route(Protocol):
    @property
    def path(self) -> str: ...
    @property
    def handler(self) -> type[Base]: ...
    @property
    def access(self) -> Any: ...


def describe(routes: Iterable[_Route], version: str, url: str = "/") -> dict[str, Any]:
    """Return the document of all verbs that have an `operation`; ``url`` is where they are called."""
    named: dict[str, type[Schema]] = {}

    def name_of(schema: type[Schema] | Schema) -> str:
        found = schema if isinstance(schema, type) else type(schema)
        named[found.__name__] = found
        return found.__name__

    plugin = MarshmallowPlugin(schema_name_resolver=name_of)
    spec = APISpec(
        title="Notifier",
        version=version,
        openapi_version="3.1.0",
        plugins=[plugin],
        info={"description": DESCRIPTION.strip()},
        servers=[{"url": url}],
    )
    assert plugin.converter is not None
    plugin.converter.field_mapping |= TYPES
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer"})
    for name, header in HEADERS.items():
        spec.components.parameter(name, "header", header)
    for route in routes:
        operations = {
            method.lower(): _operation(plugin, route, method, operation)
            for method in route.access
            if (operation := operation_of(getattr(route.handler, method.lower()))) is not None
        }
        if operations:
            spec.path(path=route.path, operations=operations, parameters=_path_parameters(route.path))
    return _explained(spec.to_dict(), named)


def _operation(plugin: MarshmallowPlugin, route: _Route, method: str, operation: Operation) -> dict[str, Any]:
    summary, _, description = (inspect.getdoc(getattr(route.handler, method.lower())) or "").partition("\n")
    scope = route.access[method]
    parameters = _query_parameters(plugin, operation.query)
    statuses = set(operation.errors)
    if scope != PUBLIC:
        statuses |= {401, 403, 422, 429, 503}
    if "{" in route.path:
        statuses.add(404)
    if 412 in operation.errors:
        parameters.append("IfMatch")
        statuses.add(400)
    if operation.idempotent:
        parameters.append("IdempotencyKey")
        statuses.add(409)
    if operation.idempotent or operation.body is not None:
        statuses |= {400, 413, 415}
    described: dict[str, Any] = {
        "operationId": "_".join([method.lower(), *re.findall(r"\w+", route.path.removeprefix("/api/v1"))]),
        "tags": [route.handler.TAG],
        "summary": summary.rstrip("."),
        "parameters": parameters,
        "responses": {
            str(operation.status): _success(operation),
            **{str(status): _problem(status) for status in sorted(statuses)},
        },
        # No security at all is said with an empty list.
        "security": [{"bearer": [scope]}] if scope != PUBLIC else [],
    }
    if description.strip():
        described["description"] = description.strip()
    if operation.body is not None:
        content: dict[str, Any] = {"schema": operation.body}
        if operation.examples:
            content["examples"] = {name: {"value": value} for name, value in operation.examples.items()}
        described["requestBody"] = {"required": True, "content": {"application/json": content}}
    return described


def _success(operation: Operation) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": HTTPStatus(operation.status).phrase}
    if operation.answer is not None:
        answer["content"] = {"application/json": {"schema": operation.answer}}
    elif operation.text:
        answer["content"] = {"text/plain": {"schema": {"type": "string"}}}
    if operation.status == 201:
        answer["headers"] = {"Location": {"description": "Its path.", "schema": {"type": "string"}}}
    return answer


def _problem(status: int) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {PROBLEM: {"schema": schemas.ProblemOut}},
    }
    if status in (429, 503):
        answer["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return answer


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "integer", "format": "int64", "minimum": 1, "maximum": INT64_MAX}
            if name == "id" or name.endswith("_id")
            else {"type": "string", "example": "default"},  # gateways are all that have names
        }
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def _query_parameters(plugin: MarshmallowPlugin, query: type[Schema]) -> list[Any]:
    assert plugin.converter is not None
    parameters: list[dict[str, Any]] = plugin.converter.schema2parameters(query, location="query")
    for parameter in parameters:
        schema = parameter["schema"]
        # A default of None means "not given" here: a query cannot say null.
        if schema.get("default", ...) is None:
            del schema["default"]
        if isinstance(schema.get("type"), list):
            schema["type"] = schema["type"][0]
    return list(parameters)


def _explained(document: dict[str, Any], named: dict[str, type[Schema]]) -> dict[str, Any]:
    """Give each schema its docstring, and let what we answer grow: only input refuses unknown keys."""
    for name, described in document["components"]["schemas"].items():
        described["description"] = (inspect.getdoc(named[name]) or "").partition("\n")[0]
        if not issubclass(named[name], schemas.Strict):
            described.pop("additionalProperties", None)
    return document
