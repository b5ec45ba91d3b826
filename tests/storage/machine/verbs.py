"""The table of verbs, from which each step is drawn."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

from hypothesis import strategies as st

from tests.storage.machine.knowledge import ANSWERS, REPLICAS

Effect = Callable[[], None]
"""What a replica learns from a verb once it is committed."""

PICK = st.integers(0, 63)
WHO = st.sampled_from(REPLICAS)
BOOL = st.booleans()
SELDOM = st.integers(0, 3).map(lambda n: n == 3)
WINDOW = st.sampled_from([None, None, "open", "closed"])
ANSWER = st.sampled_from(sorted(ANSWERS))

Do = TypeVar("Do", bound=Callable[..., Coroutine[Any, Any, Effect | None]])


class Verb(NamedTuple):
    """A coroutine (machine, db, **arguments) → its effect; drawn with this weight, so many times, when it can be."""

    do: Callable[..., Coroutine[Any, Any, Effect | None]]
    when: Callable[[Any], bool]
    most: int
    weight: int
    beside: bool
    arguments: st.SearchStrategy[dict[str, Any]]


VERBS: dict[str, Verb] = {}


def verb(
    *,
    when: Callable[[Any], bool] = lambda _: True,
    most: int = 99,
    weight: int = 1,
    beside: bool = False,
    **arguments: Any,
) -> Callable[[Do], Do]:
    """Enter a method into the table; ``beside``: also while another is not committed yet."""

    def enter(do: Do) -> Do:
        VERBS[do.__name__] = Verb(do, when, most, weight, beside, st.fixed_dictionaries(arguments))
        return do

    return enter


Call = tuple[str, dict[str, Any]]


@st.composite
def calls(draw: st.DrawFn) -> list[Call]:
    """A few verbs with their arguments, of which the first is done that can be."""
    weighted = st.sampled_from([name for name, verb in VERBS.items() for _ in range(verb.weight)])
    names = draw(st.lists(weighted, min_size=6, max_size=6))
    return [(name, draw(VERBS[name].arguments)) for name in names]
