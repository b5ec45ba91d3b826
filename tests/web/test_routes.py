"""Every route says who may call, and every verb what it takes and gives."""

from __future__ import annotations

import pytest

from notifier import errors
from notifier.web.auth import PUBLIC
from notifier.web.operations import operation_of
from notifier.web.routes import API, ROUTES, Route
from tests.web.serving import raises


def test_a_route_that_does_not_say_who_may_call_cannot_be_made() -> None:
    handler = raises(errors.NotFound())
    with pytest.raises(ValueError, match="declares"):
        Route("/x", handler, {})
    with pytest.raises(ValueError, match="declares"):
        Route("/x", handler, {"GET": PUBLIC, "POST": PUBLIC})
    with pytest.raises(ValueError, match="no such scope"):
        Route("/x", handler, {"GET": "clients:admin"})


def test_every_verb_of_the_api_has_an_operation_and_a_docstring() -> None:
    for route in ROUTES:
        if route.path.startswith(API):
            for method in route.access:
                verb = getattr(route.handler, method.lower())
                assert operation_of(verb) is not None, (route.path, method)
                assert verb.__doc__, (route.path, method)
