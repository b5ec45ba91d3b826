"""Characters that nobody sees: they come along when text is copied, and a text may consist of them."""

from __future__ import annotations

import unicodedata

BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters and signs without ink: fillers of Hangul, the braille pattern without dots."""
_JOINER = "\u034f"


def is_ignorable(char: str) -> bool:
    """Whether a character has no width: category Cf (U+200B, U+202A, U+FEFF, U+00AD, …), a variation selector."""
    return (
        unicodedata.category(char) == "Cf"
        or "\ufe00" <= char <= "\ufe0f"
        or "\U000e0100" <= char <= "\U000e01ef"
        or char == _JOINER
    )


def is_visible(char: str) -> bool:
    """Whether there is something to see of a character."""
    return not (char.isspace() or char in BLANK or is_ignorable(char))


def name(char: str) -> str:
    """Return a character as a person can find it: ``“З” (U+0417, CYRILLIC CAPITAL LETTER ZE)``."""
    code = f"U+{ord(char):04X}"
    name = unicodedata.name(char, "")
    return f"“{char}” ({code}, {name})" if char.isprintable() and name else f"the character {code}"
