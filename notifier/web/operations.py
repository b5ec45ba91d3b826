"""What a verb of a handler takes and gives, said once for the check, the answer and the OpenAPI document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from marshmallow import Schema

from notifier.web import repeats, schemas

Verb = TypeVar("Verb", bound=Callable[..., Awaitable[None]])


@dataclass(frozen=True, slots=True)
class Operation:
    """What a verb takes and gives; see `operation`."""

    name: str
    query: type[Schema]
    body: type[Schema] | None
    answer: type[Schema] | None
    status: int
    errors: tuple[int, ...]
    examples: Mapping[str, Any]
    text: bool
    idempotent: bool
    personal: bool
    cacheable: bool


def operation(
    name: str = "",
    *,
    query: type[Schema] = schemas.NoQuery,
    body: type[Schema] | None = None,
    answer: type[Schema] | None = None,
    status: int = 200,
    errors: Iterable[int] = (),
    examples: Mapping[str, Any] | None = None,
    text: bool = False,
    personal: bool = False,
    cacheable: bool = False,
) -> Callable[[Verb], Verb]:
    """Say what a verb takes and gives; ``name`` is what generated clients call it, like ``startMailing``.

    ``errors`` are the statuses beyond those that follow from the rest; with 412 the verb honours ``If-Match``.
    ``examples`` are bodies by name that work when sent as they are; ``text`` says that the answer is plain text.
    A ``post`` also honours ``Idempotency-Key``: the verb then runs with ``self.db`` inside a transaction, and its
    answer is stored in the same. With ``personal`` it shows what is erased with a client: of its body only what the
    handler puts into ``kept`` is stored, and a repeated request is answered by its ``answer_again``. ``cacheable``:
    all that is shown changes with the version only, so ``If-None-Match`` may be answered 304.
    """

    def declare(verb: Verb) -> Verb:
        idempotent = verb.__name__ == "post"
        wrapped = repeats.idempotent(verb, personal=personal) if idempotent else verb
        wrapped.operation = Operation(  # type: ignore[attr-defined]
            name, query, body, answer, status, tuple(errors), examples or {}, text, idempotent, personal, cacheable
        )
        return wrapped

    return declare


def operation_of(verb: Any) -> Operation | None:
    """Return what `operation` said of a verb."""
    return getattr(verb, "operation", None)
