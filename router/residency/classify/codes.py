"""Identifiers of letters and digits: IBAN, national numbers, machine-readable zones, addresses of mail and of machines."""

from __future__ import annotations

import importlib
import ipaddress
import re
from collections.abc import Callable, Iterable

import msgspec
import re2

from router.residency.classify.checks import cn_ric
from router.residency.classify.cues import Cue
from router.residency.classify.iban import iban_end
from router.residency.classify.kinds import Kind
from router.residency.classify.view import View

Check = Callable[[str], bool]
_ID = frozenset({Cue.PERSON})
_HEALTH = frozenset({Cue.PERSON, Cue.HEALTH})
_NONE: frozenset[Cue] = frozenset()
_JOINERS = re.compile(r"[ .\-()]")


class _Code(msgspec.Struct, frozen=True):
    """One pattern. `check` gets the match without separators, in capitals. `case` says that only capitals count."""

    name: str
    kind: Kind
    pattern: str
    check: Check | str | None
    plain: float
    cues: frozenset[Cue] = _ID
    case: bool = False


def _kvnr(code: str) -> bool:
    """German health insurance number: the letter as two digits, weights 1 and 2, digit sums, modulo 10."""
    digits = f"{ord(code[0]) - 64:02d}{code[1:9]}"
    total = sum(sum(divmod(int(digit) * (1 + i % 2), 10)) for i, digit in enumerate(digits))
    return total % 10 == int(code[9])


def _taiwan(code: str) -> bool:
    value = "ABCDEFGHJKLMNPQRSTUVXYWZIO".index(code[0]) + 10
    digits = [value // 10, value % 10, *map(int, code[1:])]
    return sum(digit * weight for digit, weight in zip(digits, (1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1), strict=True)) % 10 == 0


def _singapore(code: str) -> bool:
    total = sum(int(digit) * weight for digit, weight in zip(code[1:8], (2, 7, 6, 5, 4, 3, 2), strict=True))
    total += {"T": 4, "G": 4, "M": 3}.get(code[0], 0)
    letters = {"S": "JZIHGFEDCBA", "T": "JZIHGFEDCBA", "F": "XWUTRQPNMLK", "G": "XWUTRQPNMLK", "M": "XWUTRQPNJLK"}[code[0]]
    return letters[total % 11 if code[0] != "M" else 10 - total % 11] == code[8]


def _hong_kong(code: str) -> bool:
    letters, digits, check = code[:-7], code[-7:-1], code[-1]
    values = [36, *(ord(letter) - 55 for letter in letters)][-2:]
    total = sum(value * weight for value, weight in zip((*values, *map(int, digits)), range(9, 1, -1), strict=True))
    return (total + (10 if check == "A" else int(check))) % 11 == 0


def _polish_card(code: str) -> bool:
    values = [ord(c) - 55 if c.isalpha() else int(c) for c in code]
    return sum(value * weight for value, weight in zip(values, (7, 3, 1, 9, 7, 3, 1, 7, 3), strict=True)) % 10 == 0


def _dea(code: str) -> bool:
    d = [int(c) for c in code[2:]]
    return (d[0] + d[2] + d[4] + 2 * (d[1] + d[3] + d[5])) % 10 == d[6]


def _nir_corsica(code: str) -> bool:
    number = code[:13].replace("2A", "19").replace("2B", "18")
    return number.isdigit() and 97 - int(number) % 97 == int(code[13:])


def _rut(code: str) -> bool:
    total = sum(int(digit) * (2 + i % 6) for i, digit in enumerate(reversed(code[:-1])))
    return "0123456789K0"[11 - total % 11 if total % 11 else 11] == code[-1] if len(code) > 7 else False


def _pps(code: str) -> bool:
    total = sum(int(digit) * weight for digit, weight in zip(code[:7], range(8, 1, -1), strict=True))
    total += (ord(code[8]) - 64) * 9 if len(code) > 8 and code[8] != "W" else 0
    return "WABCDEFGHIJKLMNOPQRSTUV"[total % 23] == code[7]


def _nino(code: str) -> bool:
    return code[0] not in "DFIQUV" and code[1] not in "DFIOQUV" and code[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def _mrz(code: str) -> bool:
    """The second line of a TD3 document: the check digits of number, birth date and expiry (ICAO 9303-3)."""
    return all(_mrz_digit(code[low:high]) == code[high] for low, high in ((0, 9), (13, 19), (21, 27)))


def _mrz_digit(field: str) -> str:
    values = (0 if c == "<" else ord(c) - 48 if c.isdigit() else ord(c) - 55 for c in field)
    return str(sum(value * (7, 3, 1)[i % 3] for i, value in enumerate(values)) % 10)


def _public_v4(code: str) -> bool:
    address = ipaddress.IPv4Address(code)
    return not (
        address.is_private or address.is_loopback or address.is_unspecified or address.is_multicast or address.is_reserved
    )


def _v6(code: str) -> bool:
    address = ipaddress.IPv6Address(code)
    return not (address.is_loopback or address.is_unspecified) and code.count(":") >= 3


_N = Kind.NATIONAL_ID
_CODES: tuple[_Code, ...] = (
    _Code(
        "it.cf",
        Kind.TAX_ID,
        r"[A-Z]{6} ?[0-9LMNP-V]{2} ?[A-EHLMPRST][0-9LMNP-V]{2} ?[A-Z][0-9LMNP-V]{3} ?[A-Z]",
        "it.codicefiscale",
        0.9,
    ),
    _Code("es.dni", _N, r"(?:\d{8}|\d{2}\.\d{3}\.\d{3})[ \-]?[A-HJ-NP-TV-Z]", "es.dni", 0.72),
    _Code("es.nie", _N, r"[XYZ][ \-]?\d{7}[ \-]?[A-HJ-NP-TV-Z]", "es.nie", 0.8),
    _Code("gb.nino", _N, r"[A-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-D]", _nino, 0.72),
    _Code("fi.hetu", _N, r"\d{6}[\-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y]", "fi.hetu", 0.85),
    _Code("ie.pps", _N, r"\d{7} ?[A-W][A-IW]?", _pps, 0.68),
    _Code("mx.curp", _N, r"[A-Z][AEIOUX][A-Z]{2}\d{6}[HMX][A-Z]{5}[A-Z0-9]\d", None, 0.9),
    _Code(
        "mx.rfc",
        Kind.TAX_ID,
        r"[A-Z&]{4}[ \-]?\d{6}[ \-]?[A-Z0-9]{3}",
        lambda c: int(c[6:8]) in range(1, 13) and 1 <= int(c[8:10]) <= 31,
        0.6,
        case=True,
    ),
    _Code("in.pan", Kind.TAX_ID, r"[A-Z]{3}[ABCFGHLJPTK][A-Z]\d{4}[A-Z]", None, 0.68, case=True),
    _Code(
        "us.mbi",
        Kind.HEALTH_ID,
        r"[1-9][AC-HJKMNP-RT-Y][AC-HJKMNP-RT-Y0-9]\d-?[AC-HJKMNP-RT-Y][AC-HJKMNP-RT-Y0-9]\d-?[AC-HJKMNP-RT-Y]{2}\d{2}",
        None,
        0.8,
        _HEALTH,
        True,
    ),
    _Code("tw.id", _N, r"[A-Z][1289]\d{8}", _taiwan, 0.66),
    _Code("de.kvnr", Kind.HEALTH_ID, r"[A-Z]\d{9}", _kvnr, 0.55, _HEALTH),
    _Code("sg.nric", _N, r"[STFGM]\d{7}[A-Z]", _singapore, 0.8),
    _Code("hk.id", _N, r"[A-Z]{1,2}\d{6} ?\([0-9A]\)", _hong_kong, 0.85),
    _Code("cl.rut", _N, r"\d{1,2}\.\d{3}\.\d{3}-[\dK]", _rut, 0.8),
    _Code("cl.rut", _N, r"\d{7,8}-[\dK]", _rut, 0.52),
    _Code("pl.dowod", _N, r"[A-Z]{3} ?\d{6}", _polish_card, 0.45, frozenset({Cue.PERSON, Cue.PASSPORT}), True),
    _Code("fr.nir", _N, r"[12] ?\d\d ?\d\d ?2[AB] ?\d{3} ?\d{3} ?\d{2}", _nir_corsica, 0.9, _HEALTH),
    _Code(
        "gb.driver",
        Kind.LICENCE,
        r"[A-Z]{2,5}9{0,3}\d[0156]\d[0-3]\d\d[A-Z9]{2}\d[A-Z]{2}",
        lambda c: len(c) == 16,
        0.75,
        frozenset({Cue.LICENCE}),
        True,
    ),
    _Code("us.dea", Kind.HEALTH_ID, r"[ABFGMPRX][A-Z9]\d{7}", _dea, 0.5, _HEALTH, True),
    _Code("pt.cc", _N, r"\d{8} ?\d ?[A-Z][A-Z0-9]\d", "pt.cc", 0.85),
    _Code("cn.ric", _N, r"[1-9]\d{16}X", cn_ric, 0.95),
    _Code("lk.nic", _N, r"\d{9}[VX]", None, 0.55),
    _Code("nz.nhi", Kind.HEALTH_ID, r"[A-HJ-NP-Z]{3}\d{4}", None, 0.1, frozenset({Cue.HEALTH}), True),
    _Code("mrz", Kind.PASSPORT, r"[PIACV][A-Z<][A-Z<]{3}[A-Z]{2}[A-Z<]{24,40}<", None, 0.85, _NONE, True),
    _Code("mrz", Kind.PASSPORT, r"[A-Z0-9<]{9}\d[A-Z<]{3}\d{7}[MFX<]\d{7}[A-Z0-9<]{2,16}", _mrz, 0.95, _NONE, True),
    _Code("btc", Kind.BANK_ACCOUNT, r"(?:[13][a-km-zA-HJ-NP-Z1-9]{25,34}|bc1[a-z0-9]{25,62})", "bitcoin", 0.9, _NONE, True),
    _Code("eth", Kind.BANK_ACCOUNT, r"0x[0-9a-fA-F]{40}", None, 0.65, _NONE, True),
    _Code("mac", Kind.DEVICE_ID, r"(?:[0-9A-F]{2}[:\-]){5}[0-9A-F]{2}", None, 0.62, frozenset({Cue.DEVICE})),
    _Code("ipv4", Kind.IP_ADDRESS, r"(?:\d{1,3}\.){3}\d{1,3}", _public_v4, 0.7, _NONE),
    _Code("ipv6", Kind.IP_ADDRESS, r"(?:[0-9A-F]{1,4}:){2,7}(?::?[0-9A-F]{1,4}){1,6}", _v6, 0.75, _NONE),
)
CODE_NAMES = tuple(code.name for code in _CODES)
_HEADS = r"(?i)\b[A-Z]{2}\d{2}[ \t\r\n>*`.\-]{0,5}[A-Z0-9]{2}"
_EMAIL = re2.compile(
    rb"(?i)[A-Z0-9._%+\-?']{1,64}(?:@| ?[\[({] ?(?:at|@) ?[\])}] ?)[A-Z0-9?](?:[A-Z0-9?\-]{0,62}(?:\.| ?[\[({] ?(?:dot|\.) ?[\])}] ?)){1,8}[A-Z]{2,24}"
)
_SPOKEN = re2.compile(
    rb"(?i)\b[A-Z0-9][A-Z0-9._\-]{0,40}(?: dot [A-Z0-9]{1,30}){0,3} at [A-Z0-9\-]{2,40}(?: dot [A-Z0-9\-]{2,30}){0,2} dot (?:com|net|org|edu|gov|info|io|co|de|fr|it|es|nl|be|at|ch|pl|se|no|dk|fi|uk|ie|pt|br|mx|in|jp|cn|kr|ru|ua|tr|eu)\b"
)
_NOBODY = (b"git@", b"noreply@", b"no-reply@", b"donotreply@", b"user@host", b"root@localhost")


class CodeFinder:
    """Finds codes of letters and digits.

    Args:
        countries: two-letter prefixes to keep; None keeps all.
    """

    __slots__ = ("_any", "_checks", "_codes", "_heads", "_patterns")

    def __init__(self, countries: Iterable[str] | None = None) -> None:
        wanted = None if countries is None else set(countries)
        self._codes = tuple(c for c in _CODES if wanted is None or "." not in c.name or c.name.split(".")[0] in wanted)
        patterns = [rf"{'' if c.case else '(?i)'}(?:\b|_)({c.pattern})(?:\b|_|$|[^A-Za-z0-9])" for c in self._codes]
        self._patterns = tuple(re2.compile(pattern.encode()) for pattern in patterns)
        self._any = make_set((*patterns, _HEADS, f"{_EMAIL.pattern.decode()}|{_SPOKEN.pattern.decode()}"))
        self._checks = tuple(_make_check(c.check) for c in self._codes)
        self._heads = re2.compile(_HEADS.encode())

    def find(self, view: View) -> None:
        """Report every code of this slice.

        Raises:
            OverBudget: too many candidates.
        """
        count = len(self._codes)
        for i in self._any.Match(view.data) or ():
            if i == count:
                self._ibans(view)
                continue
            if i > count:
                self._addresses(view)
                continue
            code, check = self._codes[i], self._checks[i]
            for match in self._patterns[i].finditer(view.data):
                start, end = match.span(1)
                if not view.owns(start):
                    continue
                view.spend(1)
                self._code(view, code, check, start, end)

    def _code(self, view: View, code: _Code, check: Check | None, start: int, end: int) -> None:
        raw = view.text[start:end].upper()
        if code.name == "btc":
            raw = view.text[start:end]
        bare = raw if code.kind in (Kind.IP_ADDRESS, Kind.DEVICE_ID) or code.name == "fi.hetu" else _JOINERS.sub("", raw)
        if check is not None:
            try:
                if not check(bare):
                    return
            except (ValueError, IndexError, KeyError):
                return
        if view.text[start - 1 : start] in ("-", ".", "/", ":") and start > 1 and view.text[start - 2].isalnum():
            return
        if view.text[end : end + 1] in ("-", ":", ".") and view.text[end + 1 : end + 2].isalnum():
            return
        # As short as 1.2.3.4: a version sooner than somebody's address.
        plain = 0.45 if code.name == "ipv4" and len(raw) <= 8 else code.plain
        confidence = view.weigh(plain, start, end, code.cues)
        if confidence >= 0.5:
            view.add(code.kind, start, end, confidence, code.name)

    def _ibans(self, view: View) -> None:
        for match in self._heads.finditer(view.data):
            start = match.start()
            if not view.owns(start):
                continue
            view.spend(0.3)
            end = iban_end(view.text, start)
            if end:
                view.add(Kind.IBAN, start, end, 0.97, "iban")

    def _addresses(self, view: View) -> None:
        for match in _SPOKEN.finditer(view.data):
            if view.owns(match.start()):
                view.spend(0.5)
                view.add(Kind.EMAIL, match.start(), match.end(), 0.7, "spoken")
        for match in _EMAIL.finditer(view.data):
            start, end = match.span()
            if view.owns(start):
                view.spend(0.5)
                nobody = view.data[start:end].lower().startswith(_NOBODY)
                view.add(Kind.EMAIL, start, end, 0.3 if nobody else 0.92, "")


def make_set(patterns: Iterable[str]) -> re2.Set:
    """One automaton that says in a single pass which of the patterns occur at all; most texts have none."""
    options = re2.Options()
    options.max_mem = 64 << 20
    made = re2.Set.SearchSet(options)
    for pattern in patterns:
        made.Add(pattern)
    made.Compile()
    return made


def _make_check(check: Check | str | None) -> Check | None:
    if isinstance(check, str):
        made: Check = importlib.import_module(f"stdnum.{check}").is_valid
        return made
    return check
