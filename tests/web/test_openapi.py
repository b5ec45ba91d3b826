from __future__ import annotations

import asyncio
import re
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest
from openapi_spec_validator import validate

from notifier.web import mailings, schemas
from notifier.web.base import operation_of
from notifier.web.openapi import describe
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


def test_every_operation_has_its_own_id_and_tells_its_scope() -> None:
    operations = [
        (verb, each)
        for path in describe(ROUTES, "1")["paths"].values()
        for verb, each in path.items()
        if verb != "parameters"
    ]
    ids = [each["operationId"] for _, each in operations]
    assert len(set(ids)) == len(ids)
    assert all(each["security"] for verb, each in operations if each["tags"] != ["System"])


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
    assert not re.findall(r"https?://(?!www\.rfc-editor\.org)", document)


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
