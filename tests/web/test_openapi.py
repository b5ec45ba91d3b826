from __future__ import annotations

import asyncio
import json
import re
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from openapi_spec_validator import validate

from notifier.models import Status
from notifier.web import mailings, schemas
from notifier.web.auth import SCOPES
from notifier.web.openapi import describe
from notifier.web.operations import operation_of
from notifier.web.routes import API, ROUTES
from tests.web.conftest import Api


async def test_the_document_is_valid_and_served(api: Api) -> None:
    api.token = None
    reply = await api.get("//openapi.json")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
    assert reply.json["openapi"] == "3.1.0"
    validate(reply.json)


def test_every_route_of_the_api_is_in_it() -> None:
    paths = describe(ROUTES, "1")["paths"]
    for route in ROUTES:
        if route.path.startswith(API) or route.path in ("/healthz", "/readyz", "/metrics"):
            for method in route.access:
                described = paths[route.path][method.lower()]
                assert described["summary"], route.path
                assert described["tags"], route.path


def operations() -> list[dict[str, Any]]:
    paths = describe(ROUTES, "1")["paths"].values()
    return [each for path in paths for verb, each in path.items() if verb != "parameters"]


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Every object of the document."""
    if isinstance(node, dict):
        yield node
    for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(each)


def test_every_operation_has_a_name_of_its_own_for_generated_clients() -> None:
    names = [each["operationId"] for each in operations()]
    assert len(set(names)) == len(names)
    assert [name for name in names if not re.fullmatch("[a-z]+([A-Z][a-z]+)+", name)] == []
    assert {"startMailing", "createClient", "listMailingMessages", "updateGateway", "getMailing"} <= set(names)


def test_every_scope_and_tag_is_explained() -> None:
    document = describe(ROUTES, "1")
    scheme = document["components"]["securitySchemes"]["bearer"]
    assert scheme["x-scopes"].keys() == SCOPES
    assert all(f"`{scope}`" in scheme["description"] for scope in SCOPES)
    assert {tag["name"] for tag in document["tags"]} == {tag for each in operations() for tag in each["tags"]}
    assert all(tag["description"] for tag in document["tags"])
    for each in operations():
        assert each["security"] == [] if each["tags"] == ["System"] else set(each["security"][0]["bearer"]) <= SCOPES


def test_generated_clients_get_one_class_for_each_enumeration_and_none_for_null() -> None:
    """Enumerations are components, null stands beside them, and nothing else has alternatives."""
    document = json.loads(json.dumps(describe(ROUTES, "1")))
    components = document["components"]["schemas"]
    named = {name for name, schema in components.items() if "enum" in schema}
    assert {
        "MessageStatus", "MailingStatus", "StatusReason", "Reason", "Outcome", "GatewayState", "BreakerState",
        "OnUnknown", "SeriesStep", "BatchItemStatus", "Decision",
    } == named  # fmt: skip
    assert components["MessageStatus"]["enum"] == list(Status)
    inline = [node for node in nodes(document) if "enum" in node and node not in [components[name] for name in named]]
    assert inline == []
    for node in nodes(document):
        assert not [key for key in node if key == "x-enumeration"]
        if "anyOf" in node or "oneOf" in node:
            reference, null = node["anyOf"]
            assert (list(reference), null) == (["$ref"], {"type": "null"})
    assert components["GatewayEditIn"]["properties"]["rate"]["type"] == ["number", "null"]
    assert components["MessageOut"]["properties"]["reason"] == {
        "anyOf": [{"$ref": "#/components/schemas/Reason"}, {"type": "null"}]
    }


def test_every_answer_has_an_example_that_fits_its_schema() -> None:
    document = json.loads(json.dumps(describe(ROUTES, "1")))
    shown = 0
    for each in operations():
        for answer in each["responses"].values():
            content = answer.get("content", {}).get("application/json")
            if content is not None:
                jsonschema.validate(content["example"], {**content["schema"], "components": document["components"]})
                shown += 1
    assert shown > 20


def test_every_answer_names_its_headers() -> None:
    paths = describe(ROUTES, "1")["paths"]

    def headers(method: str, path: str, status: str) -> set[str]:
        return set(paths[path][method]["responses"][status]["headers"])

    assert headers("post", f"{API}/clients", "201") == {"X-Request-ID", "ETag", "Location", "Idempotency-Replayed"}
    assert headers("post", f"{API}/mailings/{{mailing_id}}/start", "200") == {
        "X-Request-ID", "ETag", "Idempotency-Replayed"
    }  # fmt: skip
    assert headers("get", f"{API}/clients/{{client_id}}", "304") == {"ETag"}
    assert headers("get", f"{API}/mailings", "200") == {"X-Request-ID"}
    for each in operations():
        for status, answer in each["responses"].items():
            assert ("Retry-After" in answer["headers"]) == (status in ("429", "503"))


def test_every_body_has_examples_that_are_acceptable() -> None:
    for route in ROUTES:
        for method in route.access:
            operation = operation_of(getattr(route.handler, method.lower()))
            if operation is not None and operation.body is not None:
                assert operation.examples, (route.path, method)
                for example in operation.examples.values():
                    schemas.load(operation.body, example)


@pytest.mark.parametrize("noun", ["clients", "clients/batch", "mailings"])
async def test_the_examples_work_when_sent(api: Api, noun: str) -> None:
    document = (await api.get("//openapi.json")).json
    content = document["paths"][f"{API}/{noun}"]["post"]["requestBody"]["content"]["application/json"]
    for name, example in content["examples"].items():
        reply = await api.post(f"/{noun}", example["value"])
        assert reply.status in (200, 201), (name, reply.body)
        assert b'"invalid"' not in reply.body


def test_no_example_texts_everybody_and_the_first_nobody() -> None:
    operation = operation_of(mailings.Mailings.post)
    assert operation is not None
    first, *others = operation.examples.values()
    assert first["draft"]
    assert all(each["filter"] for each in (first, *others))


def test_the_docs_need_nothing_from_elsewhere() -> None:
    document = str(describe(ROUTES, "1"))
    assert not re.findall(r"https?://(?!www\.rfc-editor\.org|gateway\.example\.com)", document)


async def test_nothing_a_stranger_makes_of_the_document_is_our_fault(api: Api, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "schemathesis.cli", "run",
        f"{api.url}/openapi.json", f"--header=Authorization: Bearer {api.token}", "--mode=all",
        "--phases=coverage,fuzzing", "--max-examples=3", "--generation-deterministic",
        "--suppress-health-check=all", "--request-timeout=60", "--continue-on-failure", "--no-color",
        "--checks=not_a_server_error,content_type_conformance,response_schema_conformance,status_code_conformance",
    ]  # fmt: skip
    run = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, stdout=PIPE, stderr=STDOUT)
    output, _ = await run.communicate()
    assert run.returncode == 0, output.decode()
    assert "passed" in output.decode()
