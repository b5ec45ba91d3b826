"""The OpenAPI 3.1 document: made from the route table and the operations, so from what checks and answers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Protocol

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema, fields

from notifier.models import INT64_MAX, Status
from notifier.storage.statistics import Step
from notifier.web import examples, schemas
from notifier.web.auth import PUBLIC
from notifier.web.base import Base
from notifier.web.operations import Operation, operation_of

DESCRIPTION = """
Texts to many clients at the right time. Press **Authorize** and give a token; then open a call, fill it in and press
**Execute**.

Times are RFC 3339, in with an offset, out in UTC. Lists end when `next_cursor` is null, and only then. Errors are
[RFC 9457](https://www.rfc-editor.org/rfc/rfc9457) problems whose `errors` point at what is wrong.
"""
PROBLEM = "application/problem+json"
TAGS = {
    "Clients": "Who can be texted: one at a time, or up to 1,000 in a batch.",
    "Mailings": "A text for all clients that match a filter. It starts and ends by itself; it can be paused, changed, "
    "cancelled, archived, deleted and restored.",
    "Messages": "One text to one client, with every attempt to send it.",
    "Statistics": "How many messages stand where. The statuses sum to the audience, in every answer.",
    "Gateways": "Where messages are sent to: state, limits, circuit breaker, last errors.",
    "System": "Health, readiness and metrics; no token is needed.",
}
SCOPES = {
    "clients:read": "read clients",
    "clients:write": "add, change and erase clients",
    "mailings:read": "read mailings",
    "mailings:write": "make, change, start, stop, archive, delete and restore mailings",
    "messages:read": "read messages, with phones",
    "messages:write": "decide about messages whose outcome is not known",
    "statistics:read": "read numbers",
    "gateways:read": "read the state of gateways",
    "gateways:write": "change limits, stop and start gateways",
}
"""What a token may be allowed."""
ANSWERED = {
    "ETag": ("The version: how many edits and actions there were. Sending does not raise it.", "string", '"7"'),
    "Location": ("The path of what was made.", "string", "/api/v1/mailings/4"),
    "Idempotency-Replayed": ("`true` where this was answered before, under the same key.", "string", "true"),
    "X-Request-ID": ("The request's own `X-Request-ID`, or a new one; it stands in the log.", "string", "a1b2c3"),
    "Retry-After": ("Seconds after which to try again.", "integer", 2),
}
"""Headers of answers: what they say, their type, an example."""
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
    "IfNoneMatch": {
        "name": "If-None-Match",
        "in": "header",
        "description": "The ETag read last; 304 without a body when nothing has changed since.",
        "schema": {"type": "string", "example": '"7"'},
    },
}
TYPES: dict[type, tuple[str | None, str | None]] = {
    schemas.Moment: ("string", "date-time"),
    schemas.Phone: ("string", None),
    schemas.Cursor: ("string", None),
}
ENUMERATION = "x-enumeration"
ENUMERATIONS: dict[type[StrEnum], str] = {Status: "MessageStatus", Step: "SeriesStep"}
"""Names of those whose own says too little outside."""


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
    plugin.converter.add_attribute_function(_enumeration)  # type: ignore[no-untyped-call]
    scopes = "".join(f"\n- `{scope}`: {meaning}" for scope, meaning in SCOPES.items())
    spec.components.security_scheme(
        "bearer",
        {
            "type": "http",
            "scheme": "bearer",
            "description": f"A token. Each operation names the scope it takes:\n{scopes}",
            "x-scopes": SCOPES,
        },
    )
    for name, description in TAGS.items():
        spec.tag({"name": name, "description": description})
    for name, (description, kind, example) in ANSWERED.items():
        spec.components.header(
            name.replace("-", ""), {"description": description, "schema": {"type": kind}, "example": example}
        )
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
    if operation.cacheable:
        parameters.append("IfNoneMatch")
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
        "operationId": operation.name,
        "tags": [route.handler.TAG],
        "summary": summary.rstrip("."),
        "parameters": parameters,
        "responses": {
            str(operation.status): _success(operation),
            **({"304": {"description": "Not changed", "headers": _headers("ETag")}} if operation.cacheable else {}),
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
    headers = ["X-Request-ID"]
    if operation.answer is not None:
        example = examples.example_of(operation.answer)
        answer["content"] = {"application/json": {"schema": operation.answer, "example": example}}
        headers += ["ETag"] if getattr(operation.answer, "VERSIONED", False) else []
    elif operation.text:
        answer["content"] = {"text/plain": {"schema": {"type": "string"}}}
    headers += ["Location"] if operation.status == 201 else []
    headers += ["Idempotency-Replayed"] if operation.idempotent else []
    return answer | {"headers": _headers(*headers)}


def _problem(status: int) -> dict[str, Any]:
    return {
        "description": HTTPStatus(status).phrase,
        "content": {PROBLEM: {"schema": schemas.ProblemOut}},
        "headers": _headers("X-Request-ID", *(["Retry-After"] if status in (429, 503) else [])),
    }


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name.replace('-', '')}"} for name in names}


def _enumeration(_converter: Any, field: fields.Field[Any], **_kwargs: Any) -> dict[str, Any]:
    """Mark a field whose words are an enumeration; `_referring` makes a reference of it."""
    return {ENUMERATION: field.words} if isinstance(field, schemas.Choice) else {}


def _referring(node: Any, found: dict[str, type[StrEnum]]) -> Any:
    """Return the document with references in the place of enumerations, which are noted in ``found``."""
    if isinstance(node, list):
        return [_referring(each, found) for each in node]
    if not isinstance(node, dict):
        return node
    if ENUMERATION not in node:
        return {key: _referring(value, found) for key, value in node.items()}
    words = node[ENUMERATION]
    name = ENUMERATIONS.get(words, words.__name__)
    found[name] = words
    reference = {"$ref": f"#/components/schemas/{name}"}
    rest = {key: value for key, value in node.items() if key not in (ENUMERATION, "type")}
    if "null" in node["type"]:
        return {"anyOf": [reference, {"type": "null"}], **rest}
    return {"allOf": [reference], **rest} if rest else reference


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
    found: dict[str, type[StrEnum]] = {}
    document = _referring(document, found)
    for name, words in found.items():
        first_line = (inspect.getdoc(words) or "").partition("\n")[0]
        document["components"]["schemas"][name] = {"type": "string", "enum": list(words), "description": first_line}
    return document
