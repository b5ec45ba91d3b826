"""The admin: HTML pages over the same storage functions and schemas as the API."""

from __future__ import annotations

from notifier.web.pages import clients, gateways, mailing_form, mailings, messages, overview, release, session
from notifier.web.pages.base import Nowhere

__all__ = ["Nowhere", "clients", "gateways", "mailing_form", "mailings", "messages", "overview", "release", "session"]
