"""A browser that is not logged in."""

from __future__ import annotations

import pytest

from tests.web.conftest import Api
from tests.web.pages.browser import Browser


@pytest.fixture
def browser(api: Api) -> Browser:
    return Browser(api)
