"""The templates of the pages, and the filters that they use."""

from __future__ import annotations

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from notifier import install
from notifier.web import files
from notifier.web.pages import words

TEMPLATES = install.assets("templates")
ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
ENVIRONMENT.globals["file"] = files.address
ENVIRONMENT.filters |= {
    "number": words.number,
    "phone": words.phone,
    "reason": words.reason,
    "mailing_reason": words.mailing_reason,
    "outcome": words.outcome,
    "status": words.status,
    "span": words.span,
    "until": words.until,
    "since": words.since,
    "size": words.size,
}

ENVIRONMENT.tests["ahead"] = words.ahead
