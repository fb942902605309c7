"""IBAN (ISO 13616): length by country, modulo 97, a few separators between characters, the end of a line among them."""

from __future__ import annotations

_LENGTHS = {
    country: int(length)
    for length, countries in (
        ("15", "NO"),
        ("16", "BE BI"),
        ("18", "DK FI FO GL NL SD FK"),
        ("19", "MK SI"),
        ("20", "AT BA EE KZ LT LU XK MN"),
        ("21", "CH HR LI LV"),
        ("22", "BG BH CR DE GB GE IE ME RS VA"),
        ("23", "AE GI IL IQ OM SO TL"),
        ("24", "AD CZ ES MD PK RO SA SE SK TN VG DZ"),
        ("25", "LY PT ST"),
        ("26", "IS TR"),
        ("27", "BF DJ FR GR IT MC MR SM CM"),
        ("28", "AL AZ BY CY DO GT HU LB NI PL SV BJ CI ML SN HN MZ MG"),
        ("29", "BR EG PS QA UA"),
        ("30", "JO KW MU YE"),
        ("31", "MT SC"),
        ("32", "LC"),
        ("33", "RU"),
    )
    for country in countries.split()
}
_SEPARATORS = " -.\u00a0\t\r\n>*`"
"""Also what a mail or a PDF puts where a line ends, what quotes put before the next one, and Markdown's emphasis."""
_IN_A_ROW = 5


def iban_end(text: str, start: int) -> int:
    """Where the IBAN that begins at `start` ends; 0 when there is none."""
    length = _LENGTHS.get(text[start : start + 2].upper())
    if length is None:
        return 0
    code: list[str] = []
    at, limit = start, min(len(text), start + 2 * length + 2 * _IN_A_ROW)
    separators = _IN_A_ROW
    while at < limit and len(code) < length:
        character = text[at]
        if character.isascii() and character.isalnum():
            code.append(character)
            separators = 0
        elif character in _SEPARATORS and separators < _IN_A_ROW:
            separators += 1
        else:
            return 0
        at += 1
    if len(code) < length or (at < len(text) and text[at].isascii() and text[at].isalnum()):
        return 0
    return at if _is_valid("".join(code).upper()) else 0


def _is_valid(code: str) -> bool:
    number = "".join(str(int(c, 36)) for c in code[4:] + code[:4])
    return int(number) % 97 == 1
