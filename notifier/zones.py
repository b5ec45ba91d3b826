"""Time zones by their IANA names, and which one was meant by something else.

One zone has one spelling: other ones are refused, and the name that was meant is proposed.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from pathlib import Path
from zoneinfo import TZPATH, available_timezones

import tzdata
from tzlocal.windows_tz import win_tz  # CLDR's windowsZones: the main zone of each of Windows' names

# Hours from UTC → the zone most people there are in; who writes an offset means where they live.
_RUSSIAN = {
    2: "Europe/Kaliningrad",
    3: "Europe/Moscow",
    4: "Europe/Samara",
    5: "Asia/Yekaterinburg",
    6: "Asia/Omsk",
    7: "Asia/Novosibirsk",
    8: "Asia/Irkutsk",
    9: "Asia/Yakutsk",
    10: "Asia/Vladivostok",
    11: "Asia/Magadan",
    12: "Asia/Kamchatka",
}
# Abbreviations that mean one zone only (CST, IST and BST do not).
_SHORT = {
    "msk": "Europe/Moscow",
    "мск": "Europe/Moscow",
    "samt": "Europe/Samara",
    "yekt": "Asia/Yekaterinburg",
    "omst": "Asia/Omsk",
    "novt": "Asia/Novosibirsk",
    "krat": "Asia/Krasnoyarsk",
    "irkt": "Asia/Irkutsk",
    "yakt": "Asia/Yakutsk",
    "vlat": "Asia/Vladivostok",
    "magt": "Asia/Magadan",
    "pett": "Asia/Kamchatka",
}
_OFFSET = re.compile(r"\(?(utc|gmt|msk|мск)? ?(?:([+−-]) ?([0-9]{1,2})(?::?([0-9]{2}))?)?\)? ?([^()]*)")
_TIME = re.compile(r" (?:standard |daylight |summer )?time$")
_NOT_WRITTEN = re.compile("[^a-z/]|[aeiouy]")
_SAME = str.maketrans("kqw", "ccv")


@cache
def names() -> frozenset[str]:
    """Return the names of all time zones (about 600): those of the machine and of the package tzdata."""
    return frozenset(available_timezones() - {"localtime", "Factory", "posixrules"})


def release() -> str:
    """Return which release of the IANA data is in use, like ``2026f``; ``unknown`` where the machine's does not say.

    Python reads the machine's data first, and the package tzdata where those have no such zone.
    """
    for folder in map(Path, TZPATH):
        if (folder / "UTC").exists():
            try:
                with (folder / "tzdata.zi").open(encoding="utf-8") as file:
                    return file.readline().removeprefix("# version ").strip()
            except OSError:
                return "unknown"
    return str(tzdata.IANA_VERSION)


def refusal(text: str) -> str:
    """Return what is said of a text that is no zone's name: the rest of a sentence."""
    meant = propose(text)
    return (
        f"is no time zone: did you mean {meant}?" if meant else "is no time zone: give an IANA name like Europe/Moscow"
    )


def propose(text: str) -> str | None:
    """Return the zone that was meant by a name in another case, misspelt or of Windows, a city or an offset.

    None when that cannot be told.
    """
    written = " ".join(text.casefold().replace("_", " ").split())
    if known := _known().get(written):
        return known
    match = _OFFSET.fullmatch(written)
    if match and match[2] and not match[5]:
        hours = int(match[3]) * (-1 if match[2] in "−-" else 1) + (3 if match[1] in ("msk", "мск") else 0)
        if int(match[4] or 0):
            return None
        # The signs of Etc are those of POSIX: west is plus.
        return _RUSSIAN.get(hours) or (_known().get(f"etc/gmt{-hours:+}") if hours else "UTC")
    place = match[5] if match and match[2] else written
    sounds = _skeleton(_TIME.sub("", place.partition(",")[0]))
    return _by_sound().get(sounds) if len(sounds) > 2 else None


@cache
def _known() -> dict[str, str]:
    """Zones by what stands for one of them exactly, in small letters and with blanks."""
    windows = {name.casefold(): zone for name, zone in win_tz.items() if zone in names()}
    return windows | _SHORT | {name.casefold().replace("_", " "): name for name in names()}


@cache
def _by_sound() -> dict[str, str]:
    """Zones by the consonants of their names and of their cities; cities that sound alike are left out."""
    cities: dict[str, set[str]] = {}
    zones: dict[str, str] = {}
    heard = [name for name in names() if not re.search("[0-9]", name)]
    for name in sorted(heard, key=lambda name: (-len(name), name)):  # of two names for a city the shorter one
        city = _skeleton(name.rpartition("/")[2])
        cities.setdefault(city, set()).add(name.rpartition("/")[2])
        zones[city] = name
    return {city: zone for city, zone in zones.items() if len(cities[city]) == 1} | {
        _skeleton(name): name for name in sorted(heard) if "/" in name
    }


def _skeleton(name: str) -> str:
    """The consonants: what is left of Yekaterinburg and Ekaterinburg, of Moscow and Moskva alike."""
    plain = unicodedata.normalize("NFKD", name.casefold())
    return re.sub(r"(.)\1+", r"\1", _NOT_WRITTEN.sub("", plain).translate(_SAME))
