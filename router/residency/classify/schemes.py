"""Identifiers that are digits only, of many countries: their length, their check, and how far each check alone is to be believed.

`plain` is the confidence in bare digits that pass the check, without a word beside them; `shaped` that in digits grouped the way
the identifier is usually printed. A check digit alone passes every tenth number, so such a scheme needs its shape or a cue;
a check with a birth date inside, or of two digits, stands alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable

import msgspec

from router.residency.classify import checks
from router.residency.classify.cues import Cue
from router.residency.classify.kinds import Kind

Check = Callable[[str], bool]
_STRONG, _MEDIUM, _SHAPED, _WEAK = 0.85, 0.65, 0.6, 0.3


class Scheme(msgspec.Struct, frozen=True):
    """One identifier: `shapes` are digit-group lengths such as `3-2-4`; `cues` words of which one makes it certain."""

    name: str
    kind: Kind
    lengths: tuple[int, ...]
    check: Check
    plain: float
    shaped: float
    shapes: frozenset[str]
    cues: frozenset[Cue]


def _library(module: str) -> Check:
    """`is_valid` of a module of python-stdnum (LGPL; used, not copied)."""
    check: Check = importlib.import_module(f"stdnum.{module}").is_valid
    return check


_ID = (Cue.PERSON,)
_HEALTH = (Cue.PERSON, Cue.HEALTH)
_BANK = (Cue.BANK, Cue.CARD)
_N, _T, _H = Kind.NATIONAL_ID, Kind.TAX_ID, Kind.HEALTH_ID

_Row = tuple[str, Kind, tuple[int, ...], "Check | str", float, float, str, tuple[Cue, ...]]
_ROWS: tuple[_Row, ...] = (
    ("us.ssn", _N, (9,), checks.us_ssn, 0.1, 0.75, "3-2-4", _ID),
    ("us.itin", _T, (9,), checks.us_itin, 0.2, 0.75, "3-2-4", _ID),
    ("us.npi", _H, (10,), checks.npi, 0.2, 0.2, "", _HEALTH),
    ("us.aba", Kind.BANK_ACCOUNT, (9,), checks.us_routing, 0.2, 0.2, "", (Cue.BANK,)),
    ("ca.sin", _N, (9,), checks.luhn, 0.3, _SHAPED, "3-3-3", _ID),
    ("gb.nhs", _H, (10,), checks.gb_nhs, _WEAK, _SHAPED, "3-3-4", _HEALTH),
    ("gb.utr", _T, (10,), "gb.utr", 0.2, 0.2, "", _ID),
    ("fr.nir", _N, (15,), checks.fr_nir, _STRONG, 0.9, "1-2-2-2-3-3-2 13-2", _HEALTH),
    ("fr.spi", _T, (13,), "fr.nif", 0.35, _SHAPED, "2-2-3-3-3", _ID),
    ("de.steuer_id", _T, (11,), checks.de_steuer_id, _STRONG, 0.9, "2-3-3-3", _ID),
    ("at.svnr", _N, (10,), checks.at_svnr, 0.55, 0.8, "4-6 4-2-2-2", _HEALTH),
    ("ch.ahv", _N, (13,), checks.ch_ahv, _STRONG, 0.9, "3-4-4-2", _ID),
    ("be.nn", _N, (11,), checks.be_nn, _STRONG, 0.9, "2-2-2-3-2 6-3-2", _ID),
    ("nl.bsn", _N, (9,), checks.nl_bsn, _WEAK, 0.4, "4-2-3 3-3-3", _HEALTH),
    ("lu.nin", _N, (13,), lambda d: checks.yyyymmdd(d) and checks.luhn(d[:12]), _STRONG, 0.9, "", _ID),
    ("es.nass", _N, (12,), lambda d: int(d[:10]) % 97 == int(d[10:]) and 1 <= int(d[:2]) <= 53, _MEDIUM, 0.8, "2-8-2", _HEALTH),
    ("pt.nif", _T, (9,), "pt.nif", _WEAK, 0.35, "3-3-3", _ID),
    ("pl.pesel", _N, (11,), "pl.pesel", _STRONG, 0.9, "", _ID),
    ("pl.nip", _T, (10,), "pl.nip", _WEAK, _SHAPED, "3-3-2-2 3-2-2-3", _ID),
    ("cz.rc", _N, (10,), checks.cz_rc, 0.45, 0.8, "6-4", _ID),
    ("cz.rc9", _N, (9,), checks.cz_rc, 0.1, 0.55, "6-3", _ID),
    ("ro.cnp", _N, (13,), "ro.cnp", _STRONG, 0.9, "", _ID),
    ("bg.egn", _N, (10,), "bg.egn", _MEDIUM, _MEDIUM, "", _ID),
    ("hr.oib", _T, (11,), checks.iso_7064_11_10, _WEAK, _WEAK, "", _ID),
    ("yu.jmbg", _N, (13,), checks.balkan_jmbg, _STRONG, _STRONG, "", _ID),
    ("hu.taj", _H, (9,), checks.hu_taj, _WEAK, 0.45, "3-3-3", _HEALTH),
    ("hu.tax", _T, (10,), checks.hu_tax, 0.4, 0.4, "", _ID),
    ("gr.amka", _N, (11,), checks.gr_amka, _MEDIUM, _MEDIUM, "", _HEALTH),
    ("gr.afm", _T, (9,), "gr.vat", _WEAK, _WEAK, "", _ID),
    ("se.pnr", _N, (10, 12), checks.se_pnr, _MEDIUM, 0.85, "6-4 8-4", _ID),
    ("dk.cpr", _N, (10,), checks.dk_cpr, 0.2, _MEDIUM, "6-4", _HEALTH),
    ("no.fnr", _N, (11,), checks.no_fnr, _STRONG, 0.9, "6-5", _ID),
    ("is.kt", _N, (10,), checks.is_kt, _MEDIUM, 0.8, "6-4", _ID),
    ("ee.ik", _N, (11,), "ee.ik", _STRONG, _STRONG, "", _ID),
    ("lt.ak", _N, (11,), "lt.asmens", _STRONG, _STRONG, "", _ID),
    ("lv.pk", _N, (11,), checks.lv_pk, 0.1, 0.6, "6-5", _ID),
    ("tr.tckn", _N, (11,), "tr.tckimlik", _MEDIUM, _MEDIUM, "", _ID),
    ("ru.snils", _N, (11,), checks.ru_snils, _MEDIUM, 0.85, "3-3-3-2", _ID),
    ("ru.inn", _T, (12,), "ru.inn", _MEDIUM, _MEDIUM, "", _ID),
    ("ua.rntrc", _T, (10,), checks.ua_rntrc, _WEAK, _WEAK, "", _ID),
    ("il.id", _N, (9,), checks.luhn, _WEAK, 0.4, "1-7-1", _ID),
    ("za.id", _N, (13,), checks.za_id, _STRONG, 0.9, "6-4-3 6-4-2-1", _ID),
    ("eg.nid", _N, (14,), checks.eg_nid, 0.55, 0.6, "", _ID),
    ("ae.eid", _N, (15,), checks.ae_emirates, _STRONG, 0.9, "3-4-7-1", _ID),
    ("sa.id", _N, (10,), checks.sa_id, _WEAK, _WEAK, "", _ID),
    ("kw.civil", _N, (12,), checks.kw_civil, _MEDIUM, _MEDIUM, "", _ID),
    ("ng.nin", _N, (11,), checks.ng_nin, 0.05, 0.05, "4-3-4", _ID),
    ("in.aadhaar", _N, (12,), "in_.aadhaar", 0.4, 0.7, "4-4-4", _ID),
    ("pk.cnic", _N, (13,), lambda d: d[0] in "1234567", 0.1, 0.75, "5-7-1", _ID),
    ("lk.nic", _N, (12,), checks.lk_nic, 0.2, 0.2, "", _ID),
    ("cn.ric", _N, (18,), checks.cn_ric, 0.95, 0.95, "", _ID),
    ("kr.rrn", _N, (13,), checks.kr_rrn, 0.35, 0.8, "6-7", _ID),
    ("jp.my_number", _N, (12,), checks.jp_my_number, _WEAK, 0.55, "4-4-4", _ID),
    ("th.pin", _N, (13,), "th.pin", 0.4, 0.8, "1-4-5-2-1", _ID),
    ("my.nric", _N, (12,), checks.my_nric, 0.2, 0.75, "6-2-4", _ID),
    ("id.nik", _N, (16,), checks.id_nik, 0.45, 0.45, "4-4-4-4", _ID),
    ("vn.cccd", _N, (12,), checks.vn_cccd, 0.1, 0.2, "", _ID),
    ("au.tfn", _T, (9,), "au.tfn", _WEAK, 0.55, "3-3-3", _ID),
    ("au.medicare", _H, (10,), checks.au_medicare, _WEAK, _SHAPED, "4-5-1", _HEALTH),
    ("nz.ird", _T, (9,), "nz.ird", _WEAK, 0.5, "3-3-3", _ID),
    ("br.cpf", _T, (11,), "br.cpf", _MEDIUM, 0.9, "3-3-3-2", _ID),
    ("br.sus", _H, (15,), checks.br_sus, 0.45, 0.65, "3-4-4-4", _HEALTH),
    ("ar.cuit", _T, (11,), "ar.cuit", 0.45, 0.8, "2-8-1", _ID),
    ("ar.cbu", Kind.BANK_ACCOUNT, (22,), "ar.cbu", 0.8, 0.8, "", _BANK),
    ("ec.ci", _N, (10,), "ec.ci", 0.35, 0.5, "9-1", _ID),
    ("uy.ci", _N, (8,), lambda d: checks.weighted(d, (2, 9, 8, 7, 6, 3, 4, 1), 10) == 0, 0.1, 0.65, "1-3-3-1", _ID),
    ("do.cedula", _N, (11,), "do.cedula", _WEAK, 0.75, "3-7-1", _ID),
    ("mx.clabe", Kind.BANK_ACCOUNT, (18,), checks.mx_clabe, 0.45, 0.6, "3-3-11-1", _BANK),
    ("imei", Kind.DEVICE_ID, (15,), checks.imei, 0.45, 0.6, "2-6-6-1", (Cue.DEVICE, Cue.PHONE)),
)
SCHEME_NAMES = tuple(row[0] for row in _ROWS)


def make_schemes(countries: Iterable[str] | None = None) -> dict[int, tuple[Scheme, ...]]:
    """The schemes by number of digits.

    Args:
        countries: two-letter prefixes to keep; None keeps all. Schemes without a country always stay.
    """
    wanted = None if countries is None else set(countries)
    by_length: dict[int, list[Scheme]] = {}
    for name, kind, lengths, check, plain, shaped, shapes, cues in _ROWS:
        country, dot, _ = name.partition(".")
        if wanted is not None and dot and country not in wanted:
            continue
        made = _library(check) if isinstance(check, str) else check
        scheme = Scheme(name, kind, lengths, made, plain, shaped, frozenset(shapes.split()), frozenset(cues))
        for length in lengths:
            by_length.setdefault(length, []).append(scheme)
    return {length: tuple(found) for length, found in by_length.items()}
