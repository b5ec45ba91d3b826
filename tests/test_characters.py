from __future__ import annotations

import pytest

from notifier import characters


@pytest.mark.parametrize("char", "\u200b\ufeff\u2060\u202e\u00ad\u2800\u3164\ufe0f\u034f\u00a0\u2028 \n")
def test_what_nobody_sees(char: str) -> None:
    assert not characters.is_visible(char)


@pytest.mark.parametrize("char", "aЖ.٧—👍²")
def test_what_everybody_sees(char: str) -> None:
    assert characters.is_visible(char)
    assert not characters.is_ignorable(char)


def test_characters_have_names() -> None:
    assert characters.name("З") == "“З” (U+0417, CYRILLIC CAPITAL LETTER ZE)"
    assert characters.name("\u200b") == "the character U+200B"
    assert characters.name("\x01") == "the character U+0001"
