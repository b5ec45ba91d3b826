"""The headers that tell a browser what not to do with an answer."""

from __future__ import annotations

from collections.abc import Mapping

import tornado.web
from tornado.httputil import HTTPHeaders, HTTPServerRequest

from notifier.web.addresses import PublicUrl

SAFE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",  # pages list what they need
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def safe_headers(public: PublicUrl) -> dict[str, str]:
    """Return what every answer tells a browser not to do."""
    if not public.is_https:
        return SAFE_HEADERS
    # Others may share the host of a prefix: they decide about its subdomains.
    subdomains = "" if public.prefix else "; includeSubDomains"
    return {**SAFE_HEADERS, "Strict-Transport-Security": f"max-age=31536000{subdomains}"}


class Safe(tornado.web.OutputTransform):
    """Gives each answer the safe headers that its handler has not set otherwise.

    Together and at the end: set one by one at the beginning, each would be checked anew, and twice where it comes to an
    error.
    """

    def __init__(self, headers: Mapping[str, str], request: HTTPServerRequest) -> None:
        self._safe = headers

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        for name, value in self._safe.items():
            if name not in headers:
                headers[name] = value
        return status_code, headers, chunk
