"""What a phone number is: what people paste, what comes out, and what is said of the rest."""

from __future__ import annotations

import phonenumbers
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from notifier import phones
from notifier.phones import NotAPhone

READ = {
    "79161234567": 79161234567,
    "+79161234567": 79161234567,
    "8 (916) 123-45-67": 79161234567,
    "8(916 123-45-67": 79161234567,
    "(8-916) 123-45-67": 79161234567,
    " +7\u00a0916\u2011123.45.67 ": 79161234567,
    "9161234567": 79161234567,
    "916 123-45-67": 79161234567,
    "8 (495) 123-45-67": 74951234567,
    "8 800 555-35-35": 78005553535,
    "88005553535": 78005553535,
    "+1 202 555 0143": 12025550143,
    "1 (202) 555-0143": 12025550143,
    "447911123456": 447911123456,
    "+84 96 234 56 78": 84962345678,
    "84962345678": 84962345678,  # as it went out
    "8 (496) 234-56-78": 74962345678,
    "852 9123 4567": 85291234567,
    "+375 29 123-45-67": 375291234567,
    "+960 771 2345": 9607712345,
    "4740612345": 4740612345,  # as it went out
    "47 40 61 23 45": 4740612345,
    # trunk digits are dialled within the country only
    "+49 (0)171 3920012": 491713920012,
    "49 (0)171 3920012": 491713920012,
    "(+49) 171 / 3920012": 491713920012,
    "+44 (0)20 7946 0958": 442079460958,
    "+7 8 916 123-45-67": 79161234567,
    "789161234567": 79161234567,
    "+7 (0) 916 123-45-67": 79161234567,
    "+54 11 15 1234 5678": 5491112345678,
    "+36 06 30 765 4321": 36307654321,
    "+90 0532 765 43 21": 905327654321,
    "+375 8 029 765-43-21": 375297654321,
    "+1 1 212 555 0187": 12125550187,
    "+352 (0) 621 123 456": 352621123456,
    "+47 (0) 40612345": 4740612345,
    # and these zeros are no trunk digits
    "+39 06 1234 5678": 390612345678,
    "+39 (0)6 1234 5678": 390612345678,
    "+39 (0)347 1234567": 393471234567,
    "+225 07 01 02 03 04": 2250701020304,
    "+38 (067) 123-45-67": 380671234567,
    # prefixes for calling abroad
    "0049 171 3920012": 491713920012,
    "+0049 171 3920012": 491713920012,
    "8 10 49 171 3920012": 491713920012,
    "8~10~49~1713920012": 491713920012,
    "81 090 1234 5678": 819012345678,
    # brackets hold an area code
    "(495) 765-43-21": 74957654321,
    "(473) 222-33-44": 74732223344,
    "(960) 771-23-45": 79607712345,
    # Kazakhstan and Baikonur
    "8 701 123 45 67": 77011234567,
    "+7 7272 50 76 12": 77272507612,
    "7 336 221 23 45": 73362212345,
    # what nobody sees
    "\u202a+7 916 123-45-67\u202c": 79161234567,
    "\u2066+79161234567\u2069": 79161234567,
    "\ufeff79161234567": 79161234567,
    "+7\u2009916\u200b1234567": 79161234567,
    "+1\ufe0e 202-555-0123": 12025550123,
    "\u200e79161234567": 79161234567,
    "7916\u00ad123\u20604567\n": 79161234567,
    # digits of any script
    "+٧٩١٦١٢٣٤٥٦٧": 79161234567,
    "＋７９１６１２３４５６７": 79161234567,
    "७ ९१६ 123-45-6７": 79161234567,
    # what programs put around it
    "'+79161234567": 79161234567,
    '="79161234567"': 79161234567,
    "=+79161234567": 79161234567,
    "tel:+7-916-123-45-67": 79161234567,
    "TEL://+79161234567": 79161234567,
    "+7 916 123-45-67,": 79161234567,
    "«79161234567»;": 79161234567,
    "7.9161234567E10": 79161234567,
    "7,9161234567E+10": 79161234567,
    "7.91612345670e+10": 79161234567,
    "79161234568.0": 79161234568,
    "79161234568,00": 79161234568,
    # a range that the metadata do not know yet
    "+375 25 512-34-56": 375255123456,
    "+375 25 112-34-56": 375251123456,
}
REFUSED = {
    # what cannot exist
    "70000000000": "cannot exist: after +7 comes 3, 4, 8 or 9 (Russia) or 7 (Kazakhstan), not 0",
    "+7 123 456 78 90": "cannot exist",
    "+7 (610) 876-56-56": "cannot exist",
    "+7 610 876-56-56": "not 6",
    "8 029 123-45-67": "begins with 8 0, as people dial within Belarus: write +375",
    "80671234567": "begins with 8 0",
    "+8 916 123 45 67": "begins with 891, and that is no country code",
    "999999999999999": "begins with 999",
    "112": "is too short: it has 3 digits",
    "3434": "is too short",
    "+8500000": "has 4 digits after +850",
    "+49 12345": "has 5 digits after +49",
    "7916123456": "has 9 digits after the 7 of Russia and Kazakhstan: there must be 10",
    "791612345678": "has 11 digits after the 7",
    "1234567890": "has 9 digits after +1",
    "7" * 41: "has 41 digits",
    "+4900171 3920012": "has trunk digits that cannot belong to it",
    # letters and signs
    "": "has no digits",
    "+": "has no digits",
    "-" * 10: "has no digits",
    "phone": "“p” (U+0070, LATIN SMALL LETTER P) at character 1",
    "7916123456a": "“a” (U+0061, LATIN SMALL LETTER A) at character 11",
    "+7 916 12З-45-67": "“З” (U+0417, CYRILLIC CAPITAL LETTER ZE) at character 10",
    "+1-800-FLOWERS": "“F” (U+0046, LATIN CAPITAL LETTER F) at character 8",
    "\u200b79161234567²": "“²” (U+00B2, SUPERSCRIPT TWO) at character 13",
    "7\x01916 123-45-67": "the character U+0001 at character 2",
    "7916+1234567": "has a plus within",
    # more than a number
    "+7 916 123-45-67 доб. 12": "has an extension, “доб. 12”: no SMS reaches one",
    "+7 916 123-45-67 (доб. 12)": "has an extension, “доб. 12”",
    "+1 202-555-0123 x45": "has an extension, “x45”",
    "+1 202-555-0123x45": "has an extension, “x45”",
    "+44 7911 123456 #5": "has an extension, “#5”",
    "79161234567,,12": "has an extension, “12”",
    "tel:+79161234567;ext=12": "has an extension, “ext=12”",
    "79161234567; 79031234567": "has a second number, “79031234567”",
    "79161234567 / 79031234567": "has a second number, “79031234567”",
    "79161234567 79031234567": "has a second number, “79031234567”",
    "79161234567\n8 (903) 123-45-67": "has 22 digits",
    "+79161234567+79031234567": "has a second number, “79031234567”",
    "79161234567 или 79031234567": "has a second number, “79031234567”",
    "8 (916) 123-45-67/68": "has a second ending, “/68”",
    # spreadsheets that lost digits
    "7.91612E+10": "has lost digits (6 of 11 are left): format the column as text",
    "7,9161E+10": "has lost digits (5 of 11 are left)",
    "791612E5": "has lost digits (6 of 11 are left)",
    "7.91612345678E10": "is a number with a fraction",
    # what may be two people's
    "9607712345": "may be +7 960 771-23-45 or +960 771-2345: write it with + and the country code",
    "84 96 234 56 78": "may be +7 496 234-56-78 or +84 962 345 678",
    "495 765-43-21": "may be +7 495 765-43-21 or +49 5765 4321",
    "372 555-12-34": "may be +7 372 555-12-34: write it with +",
    "+84 449512345": "is not known to exist in +84, and its digits could be those of +7 444 951-23-45",
    "0171 3920012": "begins with 0 and names no country",
    "(0)495 765-43-21": "begins with 0 and names no country",
    "(202) 555-0143": "begins with an area code in brackets and names no country",
    "(49) 171 3920012": "begins with an area code in brackets and names no country",
}  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_numbers_as_people_paste_them(text: str) -> None:
    assert phones.parse(text) == READ[text]
    assert phones.parse(f"+{READ[text]}") == READ[text]


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_in_the_way_is_named(text: str) -> None:
    with pytest.raises(NotAPhone) as refusal:
        phones.parse(text)
    assert REFUSED[text] in str(refusal.value)
    assert str(refusal.value)[0].islower()  # the rest of a sentence: "/phone: has …", "This has …"


def test_a_long_text_is_refused_before_it_is_read() -> None:
    with pytest.raises(NotAPhone, match="has 65 characters; a phone number has at most 64"):
        phones.parse(" " * 54 + "79161234567")
    assert phones.parse(" " * 53 + "79161234567") == 79161234567
    with pytest.raises(NotAPhone, match="has 8388608 characters"):
        phones.parse(" " * 8 * 2**20)


# ---- properties

MOBILE = {
    country: number
    for country in sorted(phonenumbers.SUPPORTED_REGIONS)
    if (number := phonenumbers.example_number_for_type(country, phonenumbers.PhoneNumberType.MOBILE)) is not None
}
TRUNK = {
    country: metadata.national_prefix
    for country in MOBILE
    if (metadata := phonenumbers.PhoneMetadata.metadata_for_region(country)) is not None and metadata.national_prefix
}
DIGITS = st.text("0123456789", min_size=5, max_size=14)
PASTED = st.one_of(
    st.text("0123456789 ()+-./,;x", max_size=30),
    st.builds(
        lambda code, trunk, rest: f"+{code}{trunk}{rest}",
        st.sampled_from(sorted(phonenumbers.COUNTRY_CODE_TO_REGION_CODE)),
        st.sampled_from(["", " ", "0", "(0)", "8", "1", "06", "80"]),
        DIGITS,
    ),
    DIGITS,
    st.text(max_size=20),
)


def outcome(text: str) -> int | str:
    """The number, or what is said of the text."""
    try:
        return phones.parse(text)
    except NotAPhone as refusal:
        return str(refusal)


@given(PASTED)
@example("+84 449512345")
@example("+375 25 112-34-56")
@example("+960 771 2345")
@example("+81 0077 712345")
def test_what_comes_out_goes_in_again(text: str) -> None:
    """The digits give the same number, or are refused as those that may be a Russian's; with a plus they always do."""
    phone = outcome(text)
    if isinstance(phone, str):
        return
    assert 7 <= len(str(phone)) <= 15
    assert phones.parse(f"+{phone}") == phone
    assert phones.parse(phones.show(phone)) == phone
    assert phones.operator_code(phone).isdigit()
    again = outcome(str(phone))
    if isinstance(again, str):
        assert again.startswith("may be +7 9")
        assert len(str(phone)) == 10
    else:
        assert again == phone


@given(st.integers(70_000_000_000, 79_999_999_999) | st.integers(80_000_000_000, 89_999_999_999), st.booleans())
def test_the_short_way_for_russian_numbers_leads_where_the_long_one_does(number: int, plus: bool) -> None:
    text = f"{'+' * plus}{number}"
    assert outcome(text) == outcome(f"'{text}") == outcome(f"{text}\u200b")


@pytest.mark.parametrize("country", TRUNK)
def test_no_country_keeps_a_trunk_digit(country: str) -> None:
    """As one writes a mobile number within the country, behind the country's code: the same person, or refused."""
    code, trunk = MOBILE[country].country_code, TRUNK[country]
    national = phonenumbers.national_significant_number(MOBILE[country])
    read = [
        outcome(written)
        for written in (f"+{code} {trunk} {national}", f"+{code} ({trunk}) {national}", f"00{code}{trunk}{national}")
    ]
    if country == "CO":  # libphonenumber takes the digits after this 0 for a carrier's, and there is no such number
        read = [each for each in read if isinstance(each, int)]
    assert set(read) == {int(f"{code}{national}")}


@pytest.mark.parametrize("country", MOBILE)
def test_every_country_s_mobile_numbers_are_read(country: str) -> None:
    number = MOBILE[country]
    written = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.INTERNATIONAL)
    assert f"+{phones.parse(written)}" == phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


# ---- operators


@pytest.mark.parametrize(
    ("phone", "code"),
    [
        (79161234567, "916"),
        (77011234567, "701"),
        (70000000000, "000"),  # a row of before
        (12025550143, "202"),
        (447911123456, "7911"),
        (491713920012, "171"),
        (390612345678, "06"),
        (4512345678, "123"),  # Denmark has no such codes
        (999999999999999, "999"),
    ],
)
def test_operators(phone: int, code: str) -> None:
    assert phones.operator_code(phone) == code


def test_numbers_are_shown_as_people_write_them() -> None:
    assert phones.show(79161234567) == "+7 916 123-45-67"
    assert phones.show(999999999999999) == "+999999999999999"
