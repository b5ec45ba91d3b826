"""Enumerations of `models` as SQL has them, so that a rule that both need is written once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TypeVar

State = TypeVar("State", bound=StrEnum)


def listed(values: Iterable[StrEnum]) -> str:
    """Return the values for the brackets of an IN: ``'a', 'b'``, always in the same order."""
    return ", ".join(f"'{value}'" for value in sorted(values))


def pairs(steps: Mapping[State, Iterable[State]]) -> str:
    """Return every (from, to) of a table of transitions, for the brackets of an IN."""
    return ", ".join(f"('{before}', '{after}')" for before, targets in steps.items() for after in sorted(targets))
