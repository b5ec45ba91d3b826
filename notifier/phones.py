"""Phone numbers: what people paste in, E.164 digits out. Pure functions; every door of the service asks them.

One person must be one row, so a number has one spelling: the digits libphonenumber writes in E.164 format, without the
plus. What cannot be read surely is refused with a sentence that says what is in the way, and what to write instead.
docs/decisions/0015 has the rules and their reasons.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import phonenumbers
from phonenumbers import PhoneNumberType, ValidationResult

from notifier import characters

LONGEST = 64
"""Characters of a text that is looked at."""
FEWEST, MOST = 7, 15
"""Digits of a number, country code included. E.164 allows 15; shorter than 7 are only numbers within a country."""

# What most requests bring: needs no library, and no cleaning. The rest of the module gives the same for them.
_RUSSIAN = re.compile(r"\+?7([34789][0-9]{9})|8(9[0-9]{9})")
# ITU allots +7 to Russia (3, 4, 8, 9) and Kazakhstan (7; 6 is reserved and not in use).
_NATIONAL_7 = re.compile("[34789][0-9]{9}")

_READABLE = frozenset("0123456789 ()+-./~")
_READABLE_ALONE = re.compile(r"[0-9 ()+\-~]+")
_AROUND = " ,;'\"`=«»“”„‘’"
_LINK = re.compile("(?:tel|sms|callto):(?://)?", re.I)
_SPELLINGS = (
    dict.fromkeys("\t\n\v\f\r", " ")
    | dict.fromkeys(characters.BLANK, " ")
    | dict.fromkeys("−⁃ー", "-")
    | dict.fromkeys("·•․‧∙", ".")
    | dict.fromkeys("⁄∕", "/")
    | {"➕": "+", "[": "(", "]": ")", "’": "'", "‘": "'"}
)
_DROPPED = "\u200b"
_SCIENTIFIC = re.compile(r"\+?([0-9]+)(?:[.,]([0-9]+))?[eE]\+?([0-9]{1,3})")
_DECIMAL = re.compile(r"(\+?[0-9]{7,15})[.,]0{1,2}")
_EXTENSION = re.compile(
    r"(?:[,;\s]*(?:#|(?:доб|доп|внутр|вн|extension|extn|ext|x|х|durchwahl|dw|poste|int)[a-zа-яё]{0,8})\.?\s*[:=#№]?"
    r"|[,;]+)\s*[0-9]{1,6}[\s).]*$",
    re.I,
)
_NO_DIGIT = re.compile("[^0-9]")
_ZERO = re.compile(r"\(\s*0\s*\)")


class NotAPhone(ValueError):
    """A text is no phone number. ``str()`` of it is the rest of a sentence: ``is too short: …``, ``has “x” …``."""


def parse(text: str) -> int:
    """Return a number's E.164 digits as an integer, country first. Raises ``NotAPhone``.

    Spaces, punctuation, invisible characters, digits of any script, ``tel:``, a spreadsheet's apostrophe, ``="…"`` and
    ``7.9161234567E10`` are understood, and so are ``00``, ``8 10`` and trunk digits behind a country code. Without a
    country code a number is Russian: ``8`` and ten digits, ten digits that begin with 9, or an area code in brackets.
    """
    if plain := _RUSSIAN.fullmatch(text):
        return int("7" + (plain[1] or plain[2]))
    if len(text) > LONGEST:
        raise NotAPhone(f"has {len(text)} characters; a phone number has at most {LONGEST}")
    return int(_read(_unwrap(text)))


def operator_code(phone: int) -> str:
    """Return the code of the operator or area: the three digits after a 7, else libphonenumber's destination code.

    Where a country has no such codes, they are the first three digits of the national number.
    """
    digits = str(phone)
    if len(digits) == 11 and digits.startswith("7"):
        return digits[1:4]
    try:
        number = phonenumbers.parse(f"+{digits}")
    except phonenumbers.NumberParseException:  # stored before such numbers were refused
        return digits[:3]
    national = phonenumbers.national_significant_number(number)
    return national[: phonenumbers.length_of_national_destination_code(number) or 3]


def show(phone: int) -> str:
    """Return a number as people write it: ``+7 916 123-45-67``."""
    try:
        number = phonenumbers.parse(f"+{phone}")
    except phonenumbers.NumberParseException:
        return f"+{phone}"
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.INTERNATIONAL)


# ---- from what was pasted to digits and punctuation


def _unwrap(given: str) -> str:
    """Return digits, blanks and ``()+-./~`` only. Raises ``NotAPhone`` for what else stands there."""
    if _READABLE_ALONE.fullmatch(given) and FEWEST <= _count(given) < 2 * FEWEST:  # as most do; never two numbers
        return given
    spelled = "".join(map(_spell, given))
    text = spelled.replace(_DROPPED, "").strip(_AROUND)
    text = text[match.end() :].strip(_AROUND) if (match := _LINK.match(text)) else text
    if match := _SCIENTIFIC.fullmatch(text):
        return _written_out(match[1], match[2] or "", int(match[3]))
    if match := _DECIMAL.fullmatch(text):
        return match[1]
    _refuse_second(text)
    if (match := _EXTENSION.search(text)) and _count(text[: match.start()]) >= FEWEST:
        raise NotAPhone(f"has an extension, “{match[0].strip(' ,;)')}”: no SMS reaches one; give the number alone")
    for char in text:
        if char not in _READABLE:
            place = spelled.index(char)
            raise NotAPhone(
                f"has {characters.name(given[place])} at character {place + 1}: write digits, spaces, +, - and "
                "brackets only, like +7 916 123-45-67"
            )
    if not _count(text):
        raise NotAPhone("has no digits")
    return text


@lru_cache(4096)
def _spell(char: str) -> str:
    """The plain spelling of a character; itself when it has none, `_DROPPED` when it means nothing."""
    if char in _SPELLINGS or char.isascii():
        return _SPELLINGS.get(char, char)
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.digit(char))
    if characters.is_ignorable(char):
        return _DROPPED
    if category == "Pd":
        return "-"
    if category == "No":  # ² is no 2
        return char
    plain = unicodedata.normalize("NFKC", char)
    return " " if char.isspace() else plain if plain in _READABLE or plain in _AROUND else char


def _written_out(whole: str, fraction: str, exponent: int) -> str:
    """The integer that scientific notation stands for. Raises ``NotAPhone`` when digits of it are lost."""
    digits, length = whole + fraction, len(whole) + exponent
    if len(digits) < length:
        raise NotAPhone(
            f"is in scientific notation and has lost digits ({len(digits)} of {length} are left): format the column as "
            "text, and enter the number again"
        )
    if digits[length:].strip("0"):
        raise NotAPhone("is a number with a fraction")
    return digits[:length]


def _refuse_second(text: str) -> None:
    """Raise ``NotAPhone`` when there is more than one number, or a second ending (``…67/68``)."""
    apart = [part for part in re.split(r"[^0-9 ()./~-]+", text) if _count(part) >= FEWEST]
    if len(apart) < 2:
        apart = [part for part in re.split("[ /]", text) if _count(part) >= 10]
    if len(apart) < 2:
        apart = [part for part in text.split("/") if _count(part) >= 8]
    if len(apart) >= 2:
        raise NotAPhone(f"has a second number, “{apart[1].strip()}”: give one")
    head, slash, ending = text.rpartition("/")
    if slash and _count(head) >= FEWEST and 0 < _count(ending) < 4:
        raise NotAPhone(f"has a second ending, “/{ending.strip()}”: give one number")


def _count(text: str) -> int:
    return len(_NO_DIGIT.sub("", text))


# ---- from digits and punctuation to the number


def _read(text: str) -> str:
    head = text.lstrip(" (")
    international = head.startswith("+")
    if "+" in head.removeprefix("+"):
        raise NotAPhone("has a plus within: it stands only at the beginning")
    if not international or not _ZERO.search(text):
        return _of_digits(text, international)
    # A zero in brackets is dialled within the country only, but Italy's belongs to the number.
    readings = []
    for reading in (text, _ZERO.sub("", text, count=1)):
        try:
            readings.append(_of_digits(reading, international))
        except NotAPhone as error:
            refusal = error
    if len(set(readings)) == 2:
        known = [each for each in readings if each.startswith("7") or _is_valid(each)]
        readings = known if len(known) == 1 else []
        refusal = NotAPhone("has a 0 in brackets that may or may not belong to the number: write it without brackets")
    if not readings:
        raise refusal
    return readings[0]


def _of_digits(text: str, international: bool) -> str:
    digits = _NO_DIGIT.sub("", text)
    if len(digits) < FEWEST:
        raise NotAPhone(
            f"is too short: it has {len(digits)} digits, and a number with its country code {FEWEST} or more"
        )
    if digits.startswith("00"):
        digits, international = digits[2:], True
    if international:
        return _with_country(digits)
    if digits.startswith("0"):
        raise NotAPhone("begins with 0 and names no country: write + and the country code instead of the 0")
    if digits.startswith("810") and len(digits) >= 12:
        return _from_8_10(digits)
    if (len(digits) == 10 and digits[0] != "7") or text.lstrip().startswith("("):
        return _of_ten(text, digits)
    if len(digits) == 11 and digits.startswith("8"):
        return _of_eight(text, digits)
    return _with_country(digits)


def _from_8_10(digits: str) -> str:
    """``8 10`` is how one dials abroad from Russia; 81 0 may also be Japan with its trunk zero."""
    readings = []
    for reading in (digits[3:], digits):
        try:
            readings.append(_with_country(reading))
        except NotAPhone as error:
            refusal = error
    if len(readings) == 2:
        raise _ambiguous(*readings)
    if not readings:
        raise refusal
    return readings[0]


def _of_ten(text: str, digits: str) -> str:
    """Ten digits without a plus, or what begins with brackets: a Russian area code, or E.164 digits."""
    russian = f"7{digits}" if _NATIONAL_7.fullmatch(digits) else None
    if text.lstrip().startswith("("):
        if len(digits) == 11 and digits[0] in "78":  # (8-916) …
            return _of_eight(text, digits) if digits[0] == "8" else _with_country(digits)
        if russian is None:
            raise NotAPhone("begins with an area code in brackets and names no country: write + and the country code")
        return russian
    groups = re.findall("[0-9]+", text)
    foreign = _exact(digits)
    if digits.startswith("9"):
        if foreign and list(map(len, groups)) != [3, 3, 2, 2]:
            raise _ambiguous(f"7{digits}", foreign)
        return f"7{digits}"
    if russian and len(groups) > 1 and not (foreign and foreign.startswith(groups[0]) and len(groups[0]) == 2):
        raise _ambiguous(russian, foreign)
    return _with_country(digits)


def _of_eight(text: str, digits: str) -> str:
    """Eleven digits from 8 on: dialled within Russia, or the E.164 digits of Vietnam and others, as they went out."""
    russian = f"7{digits[1:]}"
    if not _NATIONAL_7.fullmatch(digits[1:]):
        try:
            return _with_country(digits)
        except NotAPhone:
            if digits.startswith("80"):
                raise NotAPhone("begins with 8 0, as people dial within Belarus: write +375 instead (+380 for Ukraine)")
            return _with_country(russian)
    groups = re.findall("[0-9]+", text)
    if digits[1] == "9" or groups[0] == "8" or not (foreign := _exact(digits)):
        return russian
    if len(groups) > 1:
        raise _ambiguous(russian, foreign)
    return foreign


def _ambiguous(russian: str, foreign: str | None) -> NotAPhone:
    others = f" or {show(int(foreign))}" if foreign else ""
    return NotAPhone(f"may be {show(int(russian))}{others}: write it with + and the country code")


def _with_country(digits: str) -> str:
    """The canonical digits of a number that begins with its country code."""
    if len(digits) > MOST + 3:  # trunk digits are some three
        raise NotAPhone(f"has {len(digits)} digits; a phone number has at most {MOST}")
    if digits.startswith("7"):
        return _of_seven(digits)
    number, canonical = _canonical(digits)
    if canonical != digits and _canonical(canonical)[1] != canonical:
        raise NotAPhone("has trunk digits that cannot belong to it: write + and the number as one dials it from abroad")
    country = f"+{number.country_code}"
    after = len(canonical) + 1 - len(country)
    if not FEWEST <= len(canonical) <= MOST:
        raise NotAPhone(f"has {after} digits after {country}; a phone number has {FEWEST} to {MOST} in all")
    # Metadata lag behind new ranges, so the length is what counts; an SMS goes to mobiles, as a rule.
    length = phonenumbers.is_possible_number_for_type_with_reason(number, PhoneNumberType.MOBILE)
    if length != ValidationResult.IS_POSSIBLE and not phonenumbers.is_valid_number(number):
        raise NotAPhone(
            f"has {after} digits after {country}, and no number there that could be texted is so long or short"
        )
    # What goes out as digits must come in again, and these would come in as another's.
    russian = f"7{canonical[1:]}" if len(canonical) == 11 else f"7{canonical}"
    if _could_be_russian(canonical) and not _exact(canonical):
        raise NotAPhone(f"is not known to exist in {country}, and its digits could be those of {show(int(russian))}")
    return canonical


def _of_seven(digits: str) -> str:
    national = digits[1:]
    if len(national) == 11 and national.startswith("8"):  # +7 8 916 …
        national = national[1:]
    if len(national) != 10:
        raise NotAPhone(f"has {len(national)} digits after the 7 of Russia and Kazakhstan: there must be 10")
    if not _NATIONAL_7.fullmatch(national):
        raise NotAPhone(
            f"is a number that cannot exist: after +7 comes 3, 4, 8 or 9 (Russia) or 7 (Kazakhstan), not {national[0]}"
        )
    return f"7{national}"


def _canonical(digits: str) -> tuple[phonenumbers.PhoneNumber, str]:
    try:
        number = phonenumbers.parse(f"+{digits}")
    except phonenumbers.NumberParseException as error:
        if error.error_type == phonenumbers.NumberParseException.INVALID_COUNTRY_CODE:
            raise NotAPhone(
                f"begins with {digits[:3]}, and that is no country code: write + and the country code, like "
                "+7 916 123-45-67"
            )
        raise NotAPhone("has too few or too many digits for a phone number")
    return number, phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)[1:]


def _could_be_russian(digits: str) -> bool:
    """Whether E.164 digits of another country look like a Russian number without its country code."""
    return (len(digits) == 10 and digits[0] == "9") or (
        len(digits) == 11 and digits[0] == "8" and _NATIONAL_7.fullmatch(digits[1:]) is not None
    )


def _exact(digits: str) -> str | None:
    """The digits, when they are another country's E.164 digits as they go out; those that could be Russian only when
    libphonenumber knows them, and of ten only mobile ones.
    """
    try:
        number, canonical = _canonical(digits)
    except NotAPhone:
        return None
    if canonical != digits:
        return None
    if len(digits) == 10 and digits[0] == "9":
        kinds = (PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE_OR_MOBILE)
        return digits if phonenumbers.number_type(number) in kinds else None
    return digits if phonenumbers.is_valid_number(number) else None


def _is_valid(digits: str) -> bool:
    return phonenumbers.is_valid_number(phonenumbers.parse(f"+{digits}"))
