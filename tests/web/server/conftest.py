"""A server whose handlers wait until they are told."""

from __future__ import annotations

import asyncio

import pytest

from notifier.web.routes import make_application
from tests.web.conftest import Api, MakeApi
from tests.web.server.wire import SLOW, Slow


@pytest.fixture
def slow(make_api: MakeApi) -> Api:
    Slow.release = asyncio.Event()
    return make_api(lambda context: make_application(context, SLOW), most=5)
