"""What a gateway's answer means: from a response, or what was raised instead of one, to an outcome.

Nothing here raises, whatever a stranger's server says.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
import unicodedata
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_tz
from typing import Any, NamedTuple

import orjson
from aiohttp import hdrs

from notifier import hosts
from notifier.delivery.connect import NotConnected
from notifier.delivery.http import Response
from notifier.delivery.lenient import Unreadable
from notifier.delivery.reader import BODY_LIMIT
from notifier.models import Outcome, Reason

DETAIL_LIMIT = 300  # characters of a gateway's words that are kept
RETRY_AFTER = (1.0, 3600.0)  # seconds; what a Retry-After is clamped to


class Answer(NamedTuple):
    """What one request came to; ``retry_after`` is in seconds where the gateway named a time."""

    outcome: Outcome
    reason: Reason | None = None
    status_code: int | None = None
    detail: str | None = None
    retry_after: float | None = None


_ACCEPTED = Answer(Outcome.ACCEPTED, None, 200)


def classify(response: Response, secrets: Sequence[str] = ()) -> Answer:
    """What a response means; its words are kept without ``secrets`` and phone numbers."""
    status = response.status
    if status == 200:
        coding = response.headers.get(hdrs.CONTENT_ENCODING)
        return classify_body(response.body, coding, secrets)
    if 200 < status < 300:
        return Answer(Outcome.UNKNOWN, Reason.BAD_ANSWER, status, _said(response, secrets))
    answer = classify_status(status, ", ".join(response.headers.getall(hdrs.RETRY_AFTER, ())), time.time())
    if 300 <= status < 400:
        return answer._replace(detail=_where_to(response.headers.get(hdrs.LOCATION), secrets))
    said = _said(response, secrets)
    if answer.outcome is Outcome.REJECTED and said and ABOUT_US.search(said):
        return Answer(Outcome.DECLINED, Reason.ACCOUNT_REFUSED, status, said)
    return answer._replace(detail=said)


def classify_body(body: bytes | None, coding: str | None = None, secrets: Sequence[str] = ()) -> Answer:
    """The success rule for a 200: a JSON object whose ``code`` is the integer 0.

    ``coding`` is the Content-Encoding: what can be read is read, whatever that says.
    """
    if body is None:
        return Answer(Outcome.UNKNOWN, Reason.BAD_ANSWER, 200, f"an answer of more than {BODY_LIMIT} bytes")
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        body = _readable(body)
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = None
    code = answer.get("code") if isinstance(answer, dict) else None
    if type(code) is not int or _contradicts_itself(body):  # a bool is an int, but no code
        words = body.decode("utf-8", "replace")
        return Answer(
            Outcome.UNKNOWN,
            Reason.BAD_ANSWER,
            200,
            _words(f"Content-Encoding {coding!r}: {words}" if coding else words, secrets),
        )
    if code == 0:
        return _ACCEPTED
    words = _words(f"{code}: {answer.get('message', '')}", secrets)
    reason = Reason.ACCOUNT_REFUSED if ABOUT_US.search(words) else Reason.DECLINED
    return Answer(Outcome.DECLINED, reason, 200, words)


def _contradicts_itself(body: bytes) -> bool:
    """Whether the object says two different things of its code (RFC 8259, 4, leaves open which one counts)."""
    if body.count(b'"code"') < 2 and b"\\u" not in body:
        return False
    codes: list[Any] = []

    def pairs(found: list[tuple[str, Any]]) -> None:
        codes[:] = [value for name, value in found if name == "code"]  # the outermost object comes last

    json.loads(body.decode("utf-8", "replace"), object_pairs_hook=pairs)
    return any(code != codes[0] for code in codes)


def _readable(body: bytes) -> bytes:
    """The body without a byte order mark and unpacked, up to twice, as far as it can be."""
    for _ in range(2):
        unpacked = next((each for each in map(_unpacked, [body] * len(_PACKED), _PACKED) if each), None)
        if unpacked is None:
            break
        body = unpacked
    return body.removeprefix(b"\xef\xbb\xbf")


# What zlib is told: a gzip or zlib header, or none (a raw deflate stream, which RFC 9110, 8.4.1.2, calls common).
_PACKED = (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS)


def _unpacked(body: bytes, wbits: int) -> bytes | None:
    decoder = zlib.decompressobj(wbits=wbits)
    try:
        unpacked = decoder.decompress(body, BODY_LIMIT)
    except zlib.error:
        return None
    return unpacked if decoder.eof else None


def _said(response: Response, secrets: Sequence[str]) -> str | None:
    """What an answer says beside its status."""
    return _words(_readable(response.body).decode("utf-8", "replace"), secrets) if response.body else None


def _where_to(location: str | None, secrets: Sequence[str]) -> str | None:
    """The address that a redirect names, without what may be secret in it."""
    if not location:
        return None
    try:
        shown = hosts.without_secrets(location)
    except ValueError:
        shown = "an address that is none"
    return _words(f"it points to {shown}", secrets)


# What a refusal says after an attempt in doubt when it is because of that attempt: the gateway has the message.
_HAS_IT = re.compile(
    r"\bduplicat|\balready\b(?: been)? (?:exist|sent|accepted|received|processed|queued|submitted|used|known|delivered)"
    r"|\b(?:exists|sent|accepted|received|processed|queued|submitted|used) already\b"
    r"|дублик|повторн|уже (?:был[ао]? )?(?:существует|отправлен|принят|получен|обработан|использован)",
    re.IGNORECASE,
)
# What a refusal says when it is about our account and not about the recipient: credentials, money, sender.
ABOUT_US = re.compile(
    r"credential|\bunauthori[sz]ed|\bauthenticat|\bauthori[sz]ation|\bapi[ _-]?key"
    r"|\b(?:invalid|wrong|bad|expired|missing|unknown|revoked) (?:access )?(?:token|login|password|username|jwt)\b"
    r"|\b(?:token|login|password|username|jwt) (?:is |has )?(?:invalid|wrong|expired|missing|unknown|revoked)\b"
    r"|\baccess denied|\bbalance\b|\binsufficient (?:funds|credits?)"
    r"|\b(?:no|not enough|out of) (?:money|funds|credits?)\b"
    r"|\bpayment\b|\baccount (?:is |has been |was )?(?:suspended|blocked|disabled|inactive|expired|closed)"
    r"|\b(?:invalid|wrong|bad|missing|unknown|unregistered) (?:sender|originator)\b"
    r"|\b(?:sender|originator)\b.{0,20}\b(?:not|invalid|wrong|missing|unknown|unregistered|blocked|rejected)\b"
    r"|баланс|недостаточно средств|нет (?:средств|денег)|авторизаци|аутентификаци|неверн\w+ (?:логин|пароль|токен|ключ)"
    r"|отправител.{0,20}\bне\b",
    re.IGNORECASE,
)


def has_it_already(answer: Answer) -> bool:
    """Whether a refusal means, after an attempt in doubt, that the gateway took the message then.

    That is a 409, or a refusal that says duplicate, already exists, already sent and the like; not one about us, which
    may say that of a token or a sender.
    """
    if answer.outcome not in (Outcome.REJECTED, Outcome.DECLINED):
        return False
    about_us = answer.reason is Reason.ACCOUNT_REFUSED
    return answer.status_code == 409 or bool(answer.detail and not about_us and _HAS_IT.search(answer.detail))


def classify_status(status: int, retry_after: str | None, now: float) -> Answer:
    """Every answer but 2xx; ``now`` is in seconds since the epoch, for a Retry-After that is a date."""
    if status == 429:
        return Answer(Outcome.THROTTLED, Reason.THROTTLED, status, None, parse_retry_after(retry_after, now))
    if status == 503:
        return Answer(Outcome.UNAVAILABLE, Reason.UNAVAILABLE, status, None, parse_retry_after(retry_after, now))
    if status in (407, 511):
        return Answer(Outcome.UNAVAILABLE, Reason.PROXY_AUTHENTICATION, status)
    if 300 <= status < 400:
        return Answer(Outcome.MISCONFIGURED, Reason.REDIRECTED, status)
    if status in _MISCONFIGURED:
        return Answer(Outcome.MISCONFIGURED, _MISCONFIGURED[status], status)
    if status == 408:
        return Answer(Outcome.UNKNOWN, Reason.TIMEOUT, status)
    if 400 <= status < 500:
        return Answer(Outcome.REJECTED, Reason.REJECTED, status)
    if 500 <= status < 600:
        return Answer(Outcome.UNKNOWN, Reason.SERVER_ERROR, status)
    return Answer(Outcome.UNKNOWN, Reason.BAD_ANSWER, status)


_MISCONFIGURED = {
    401: Reason.UNAUTHORIZED,
    402: Reason.PAYMENT_REQUIRED,
    403: Reason.UNAUTHORIZED,
    404: Reason.WRONG_ADDRESS,
    405: Reason.WRONG_ADDRESS,
    # about the form of our request, or about the way to the gateway: nobody can be sent to until that is put right
    **dict.fromkeys((411, 413, 414, 415, 421, 423, 425, 426, 428, 431, 451), Reason.REQUEST_REFUSED),
}


def classify_error(error: Exception, secrets: Sequence[str] = ()) -> Answer:
    """What was raised instead of an answer to a request that was written, at least in part."""
    detail = _words(f"{type(error).__name__}: {error}", secrets)
    if isinstance(error, asyncio.TimeoutError):
        return Answer(Outcome.UNKNOWN, Reason.TIMEOUT, None, detail)
    if isinstance(error, Unreadable):
        return Answer(Outcome.UNKNOWN, Reason.BAD_ANSWER, None, _words(str(error), secrets))
    if isinstance(error, OSError):
        return Answer(Outcome.UNKNOWN, Reason.RESET, None, detail)
    return Answer(Outcome.UNKNOWN, Reason.INTERNAL_ERROR, None, detail)


def classify_unsent(error: Exception, secrets: Sequence[str] = ()) -> Answer:
    """What was raised instead of a connection: surely nothing was sent."""
    if isinstance(error, NotConnected):
        return Answer(Outcome.UNAVAILABLE, error.reason, None, _words(str(error), secrets))
    return Answer(Outcome.UNAVAILABLE, Reason.INTERNAL_ERROR, None, _words(f"{type(error).__name__}: {error}", secrets))


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Whole seconds to wait, clamped; None for nothing or nonsense.

    Seconds, with a fraction too, or any date of RFC 9110, 5.6.7; a date without a zone is UTC. Of several, as lines of
    a header that are joined by commas, the longest.
    """
    waits = [wait for wait in (_wait(part.strip(), now) for part in _BETWEEN.split(value or "")) if wait is not None]
    return min(max(math.ceil(min(max(waits), RETRY_AFTER[1])), RETRY_AFTER[0]), RETRY_AFTER[1]) if waits else None


def _wait(value: str, now: float) -> float | None:
    if _SECONDS.fullmatch(value):
        return float(value)
    parts = parsedate_tz(value)
    if parts is None:
        return None
    if parts[0] > 9999:
        return math.inf
    try:
        return datetime(*parts[:6], tzinfo=UTC).timestamp() - (parts[9] or 0) - now
    except (ValueError, OverflowError):
        return None


_SECONDS = re.compile(r"[+-]?\d+(?:\.\d*)?", re.ASCII)
_BETWEEN = re.compile(r"(?<=[\dT])\s*,")  # not the comma after a weekday

# Phone numbers in a gateway's words: they must not outlive the client, nor be read by whoever may read words. Seven
# digits or more with up to three signs between two; dates, times and IPv4 addresses are none.
_NUMBER = re.compile(
    r"(?<!\d)(?P<kept>(?:19|20)\d\d-[01]\d-[0-3]\d(?:[ T][0-2]\d:[0-5]\d(?::[0-5]\d(?:\.\d{1,6})?)?)?(?!\d)"
    r"|(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.]))"
    r"|\+?\d(?:(?:(?![*:;,=\"'<>{}\[\]|])[\W_]){0,3}\d){6,}"
)
# A character written as \u0037, \x37, %37, &#55; or &#x37;
_ESCAPED = re.compile(
    r"\\(?:u([0-9a-f]{4})|x([0-7][0-9a-f]))|%([2-7][0-9a-f])|&#x0*([0-9a-f]{1,4});?|&#0*(\d{1,4});?", re.I
)
_TELLING = 7  # digits of a phone in sequence that tell whose it is


def without_phone(answer: Answer, phone: int) -> Answer:
    """The answer without the digits of ``phone``, however they are separated: no seven in sequence are left."""
    if answer.detail is None:
        return answer
    text, digits = answer.detail, str(phone)
    parts = {digits[at : at + _TELLING] for at in range(max(1, len(digits) - _TELLING + 1))}
    while True:  # what is left and right of a span may be a part of the phone again
        at = [place for place, each in enumerate(text) if each.isdecimal()]
        said = "".join(text[place] for place in at)
        found = [(said.find(part), len(part)) for part in parts if part in said]
        if not found:
            return answer._replace(detail=text)
        start, length = min(found)
        while said[start : start + length + 1] in digits and start + length < len(said):
            length += 1
        text = f"{text[: at[start]]}***{text[at[start + length - 1] + 1 :]}"


def _plain(text: str) -> str:
    """The text without escapes, up to three deep, and with ASCII digits only."""

    def character(match: re.Match[str]) -> str:
        *hexadecimal, decimal = match.groups()
        return chr(int(decimal) if decimal else int(next(filter(None, hexadecimal)), 16))

    for _ in range(3):
        text, count = _ESCAPED.subn(character, text)
        if not count:
            break
    if text.isascii():
        return text
    values = ((each, unicodedata.digit(each, None)) for each in text)
    return "".join(each if value is None else str(value) for each, value in values)


def _words(text: str, secrets: Sequence[str]) -> str:
    """A stranger's words, fit to be stored: none of ours, no phone number, no NUL, no lone surrogates, not long."""
    for secret in secrets:
        text = text.replace(secret, "***")
    text = _plain(text[: 4 * DETAIL_LIMIT])
    for secret in secrets:  # it may have been escaped
        text = text.replace(secret, "***")
    text = _NUMBER.sub(lambda match: match["kept"] or "***", text)[:DETAIL_LIMIT]
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
