"""Time zones have one spelling; for every other one the zone that was meant is proposed."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import tzdata

from notifier import zones

ROOT = Path(__file__).parent.parent
MEANT = {
    "Europe/moscow": "Europe/Moscow",
    "EUROPE/MOSCOW": "Europe/Moscow",
    " Europe/Moscow\n": "Europe/Moscow",
    "america/new york": "America/New_York",
    "etc/gmt-3": "Etc/GMT-3",
    # Windows
    "Russian Standard Time": "Europe/Moscow",
    "Ekaterinburg Standard Time": "Asia/Yekaterinburg",
    "W. Europe Standard Time": "Europe/Berlin",
    "(UTC+03:00) Moscow": "Europe/Moscow",
    "(UTC+03:00) Moscow, St. Petersburg": "Europe/Moscow",
    "(UTC+05:00) Ekaterinburg": "Asia/Yekaterinburg",
    # abbreviations and offsets
    "MSK": "Europe/Moscow",
    "мск": "Europe/Moscow",
    "MSK+2": "Asia/Yekaterinburg",
    "UTC+3": "Europe/Moscow",
    "GMT+03:00": "Europe/Moscow",
    "+03:00": "Europe/Moscow",
    "UTC−5": "Etc/GMT+5",
    "UTC+0": "UTC",
    # cities, and names as they are heard
    "Moscow": "Europe/Moscow",
    "Moskva": "Europe/Moscow",
    "São Paulo": "America/Sao_Paulo",
    "Asia/Ekaterinburg": "Asia/Yekaterinburg",
    "Europe/Moskow": "Europe/Moscow",
    "Europe/Kyev": "Europe/Kyiv",
    # nobody knows
    "Mars/Olympus": None,
    "localtime": None,
    "../etc/passwd": None,
    "UTC+15": None,
    "GMT+5:30": None,
    "CST": None,
    "a": None,
    "": None,
}


@pytest.mark.parametrize("text", MEANT)
def test_what_was_meant(text: str) -> None:
    assert zones.propose(text) == MEANT[text]
    assert zones.refusal(text).endswith(f"did you mean {MEANT[text]}?" if MEANT[text] else "like Europe/Moscow")
    assert MEANT[text] is None or MEANT[text] in zones.names()


def test_the_names_are_all_good() -> None:
    names = {"Europe/Kiev", "Europe/Kyiv", "Asia/Calcutta", "US/Eastern", "EST", "Etc/GMT-3", "Asia/Qostanay",
             "America/Ciudad_Juarez", "UTC"}  # fmt: skip
    assert names <= zones.names()
    assert not {"localtime", "Factory", "posixrules"} & zones.names()
    for name in zones.names():
        ZoneInfo(name)
        assert zones.propose(name) == name


def test_the_release_is_one_of_iana_s() -> None:
    """The machine's where it has zones, whatever Python takes; else that of the package."""
    assert re.fullmatch(r"20[0-9]{2}[a-z]|unknown", zones.release())
    script = "from notifier import zones; print(zones.release())"
    alone = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONTZPATH": ""}, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert alone.stdout.strip() == tzdata.IANA_VERSION


def test_a_thousand_bad_zones_cost_no_more_than_a_thousand_good_ones_read_anew() -> None:
    """A proposal is looked up and not searched for: a batch of bad zones must not hold the loop."""
    zones.propose("warm")
    began = time.perf_counter()
    for number in range(1000):
        assert zones.propose(f"Xyzzy/Qwrtpsdfg{number}") is None
    proposing = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(1000):
        ZoneInfo.no_cache("Europe/Moscow")
    assert proposing < time.perf_counter() - began
