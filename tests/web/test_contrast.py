"""The colours of the pages, as their stylesheet names them, can be told apart (WCAG 2.2: 1.4.3 and 1.4.11)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSS = (Path(__file__).resolve().parents[2] / "static" / "admin" / "admin.css").read_text(encoding="utf-8")
LIGHT, DARK = (
    dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6});", block))
    for block in re.findall(r":root \{(.*?)\n *\}", CSS, re.S)[:2]
)
WORDS = ("sent", "failed", "unknown", "retrying", "sending", "over", "quiet")
"""What text is written in."""
MARKS = ("edge", "ring")
"""The edges of fields, and the ring around what has the focus."""


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_black_and_white() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["card", "page"])
def test_what_is_written_and_what_is_drawn_stands_out(scheme: dict[str, str], ground: str) -> None:
    assert {name for name in WORDS if contrast(scheme[name], scheme[ground]) < 4.5} == set()
    assert {name for name in MARKS if contrast(scheme[name], scheme[ground]) < 3} == set()
