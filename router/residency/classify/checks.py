"""Check digits and structure of identifiers that are digits only; pure functions over a string of ASCII digits."""

from __future__ import annotations

from functools import cache

_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
_MONTH_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    total = 0
    for i, digit in enumerate(reversed(digits)):
        value = ord(digit) - 48
        total += _DOUBLED[value] if i & 1 else value
    return total % 10 == 0


def weighted(digits: str, weights: tuple[int, ...], modulus: int) -> int:
    """The weighted sum of the digits, modulo `modulus`."""
    return sum((ord(digit) - 48) * weight for digit, weight in zip(digits, weights, strict=False)) % modulus


def is_month_day(month: int, day: int) -> bool:
    """Whether a year has such a day."""
    return 1 <= month <= 12 and 1 <= day <= _MONTH_DAYS[month - 1]


def yymmdd(digits: str) -> bool:
    """Six digits that are year, month and day."""
    return is_month_day(int(digits[2:4]), int(digits[4:6]))


def ddmmyy(digits: str) -> bool:
    """Six digits that are day, month and year."""
    return is_month_day(int(digits[2:4]), int(digits[:2]))


def yyyymmdd(digits: str) -> bool:
    """Eight digits that are a day between 1900 and 2099."""
    return digits[:2] in ("19", "20") and is_month_day(int(digits[4:6]), int(digits[6:8]))


@cache
def _issuers() -> dict[str, tuple[str, frozenset[int]]]:
    """Issuer prefixes of payment cards -> network and lengths, as the networks publish them."""
    prefixes: dict[str, tuple[str, frozenset[int]]] = {"4": ("visa", frozenset({13, 16, 19}))}

    def add(name: str, lengths: set[int], *ranges: tuple[int, int]) -> None:
        for first, last in ranges:
            for number in range(first, last + 1):
                prefixes[str(number)] = (name, frozenset(lengths))

    add("mastercard", {16}, (51, 55), (2221, 2720))
    add("amex", {15}, (34, 34), (37, 37))
    add("diners", {14, 16}, (300, 305), (36, 36), (38, 39))
    add("discover", {16, 19}, (6011, 6011), (644, 649), (65, 65))
    add("jcb", {16}, (3528, 3589))
    add("unionpay", {16, 17, 18, 19}, (62, 62), (81, 81))
    add("mir", {16}, (2200, 2204))
    add("troy", {16}, (9792, 9792))
    add("verve", {16, 18, 19}, (5060, 5061), (6500, 6500))
    add("elo", {16}, (6362, 6363), (5067, 5067), (4011, 4011), (4514, 4514))
    add("maestro", {16, 18, 19}, (5018, 5018), (5020, 5020), (5038, 5038), (6304, 6304), (6759, 6759), (6761, 6763), (5893, 5893))
    add("rupay", {16}, (508, 508), (6521, 6522), (353, 353), (356, 356))
    return prefixes


def card_network(digits: str) -> str:
    """The network of a payment card number with a right check digit; empty when it is none."""
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 2:
        return ""
    issuers = _issuers()
    for width in (4, 3, 2, 1):
        known = issuers.get(digits[:width])
        if known is not None and len(digits) in known[1]:
            return known[0] if luhn(digits) else ""
    return ""


def imei(digits: str) -> bool:
    """15 digits of a handset; the reporting body's two digits are never 00."""
    return luhn(digits) and digits[:2] in _REPORTING_BODIES and len(set(digits)) > 3


_REPORTING_BODIES = frozenset(
    {"01", "35", "86", "99", "98", "45", "44", "49", "50", "51", "52", "53", "54", "91", "30", "33", "10"}
)


def us_ssn(digits: str) -> bool:
    """Areas, groups and serials the Social Security Administration never gave out are none; nor are advertised examples."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    if area in ("000", "666") or area >= "900" or group == "00" or serial == "0000":
        return False
    return digits not in ("078051120", "219099999") and len(set(digits)) > 1


def us_itin(digits: str) -> bool:
    """Begins with 9; the group is in the ranges of the IRS."""
    return digits[0] == "9" and (
        50 <= int(digits[3:5]) <= 65 or 70 <= int(digits[3:5]) <= 88 or int(digits[3:5]) in (90, 91, 92, *range(94, 100))
    )


def us_routing(digits: str) -> bool:
    """ABA routing transit number."""
    prefix = int(digits[:2])
    known = prefix <= 12 or 21 <= prefix <= 32 or 61 <= prefix <= 72 or prefix == 80
    return known and digits != "000000000" and weighted(digits, (3, 7, 1) * 3, 10) == 0


def npi(digits: str) -> bool:
    """US National Provider Identifier: Luhn after the prefix 80840."""
    return digits[0] in "12" and luhn("80840" + digits)


def au_medicare(digits: str) -> bool:
    """Australian Medicare card, without the issue number's meaning."""
    return digits[0] in "23456" and weighted(digits, (1, 3, 7, 9, 1, 3, 7, 9), 10) == int(digits[8])


def nl_bsn(digits: str) -> bool:
    """The eleven-test with the last digit counted -1."""
    return digits != "000000000" and weighted(digits, (9, 8, 7, 6, 5, 4, 3, 2, -1), 11) == 0


def gb_nhs(digits: str) -> bool:
    """Mod 11, weights 10 to 2."""
    check = 11 - weighted(digits, (10, 9, 8, 7, 6, 5, 4, 3, 2), 11)
    return len(set(digits)) > 2 and check % 11 == int(digits[9]) and check != 10


def ch_ahv(digits: str) -> bool:
    """Swiss AHV/AVS: 756 and an EAN-13 check digit."""
    return digits.startswith("756") and weighted(digits, (1, 3) * 7, 10) == 0


def fr_nir(digits: str) -> bool:
    """13 digits and a key of two: 97 less the number modulo 97."""
    month = int(digits[3:5])
    return (
        digits[0] in "12378"
        and (1 <= month <= 12 or 20 <= month <= 42 or month >= 50)
        and 97 - int(digits[:13]) % 97 == int(digits[13:15])
    )


def no_fnr(digits: str) -> bool:
    """Birth date (the day +40 for D numbers) and two check digits modulo 11."""
    day = int(digits[:2])
    if not is_month_day(int(digits[2:4]) % 40, day - 40 if day > 40 else day):
        return False
    return (
        weighted(digits[:10], (3, 7, 6, 1, 8, 9, 4, 5, 2, 1), 11) == 0
        and weighted(digits, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1), 11) == 0
    )


def dk_cpr(digits: str) -> bool:
    """A birth date and four digits; the check digit was given up in 2007."""
    return ddmmyy(digits)


def se_pnr(digits: str) -> bool:
    """Birth date (the day +60 for coordination numbers) and Luhn over the last ten."""
    short = digits[-10:]
    day = int(short[4:6])
    dated = is_month_day(int(short[2:4]), day - 60 if day > 60 else day)
    return dated and (len(digits) == 10 or digits[:2] in ("18", "19", "20")) and luhn(short)


def be_nn(digits: str) -> bool:
    """97 less the first nine modulo 97, with a 2 in front for those born from 2000 on."""
    base, key, month = int(digits[:9]), int(digits[9:]), int(digits[2:4])
    return month % 20 <= 12 and month < 60 and key in (97 - base % 97, 97 - (2_000_000_000 + base) % 97)


def is_kt(digits: str) -> bool:
    """Icelandic kennitala: birth date, a check digit, the century."""
    return digits[9] in "089" and ddmmyy(digits) and weighted(digits, (3, 2, 7, 6, 5, 4, 3, 2, 1), 11) == 0


def balkan_jmbg(digits: str) -> bool:
    """EMŠO/JMBG of the states that were Yugoslavia: ddmmyyy, region, serial, mod 11."""
    if not is_month_day(int(digits[2:4]), int(digits[:2])) or digits[4] not in "09":
        return False
    check = 11 - weighted(digits, (7, 6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2), 11)
    return (0 if check > 9 else check) == int(digits[12])


def at_svnr(digits: str) -> bool:
    """Austrian social insurance: serial, check digit, ddmmyy."""
    return (
        digits[0] != "0"
        and is_month_day(max(1, int(digits[6:8]) % 13), int(digits[4:6]))
        and weighted(digits, (3, 7, 9, 0, 5, 8, 4, 2, 1, 6), 11) == int(digits[3])
    )


def hu_taj(digits: str) -> bool:
    """Hungarian social security number: alternating 3 and 7."""
    return weighted(digits, (3, 7, 3, 7, 3, 7, 3, 7), 10) == int(digits[8])


def hu_tax(digits: str) -> bool:
    """Hungarian tax identification of a person: begins with 8."""
    return digits[0] == "8" and weighted(digits, (1, 2, 3, 4, 5, 6, 7, 8, 9), 11) == int(digits[9])


def ru_snils(digits: str) -> bool:
    """Weights 9 to 1, modulo 101."""
    return weighted(digits, (9, 8, 7, 6, 5, 4, 3, 2, 1), 101) % 100 == int(digits[9:]) and digits > "00100199800"


def jp_my_number(digits: str) -> bool:
    """Japanese individual number: mod 11."""
    rest = weighted(digits, (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2), 11)
    return (0 if rest <= 1 else 11 - rest) == int(digits[11]) and len(set(digits)) > 2


def ae_emirates(digits: str) -> bool:
    """United Arab Emirates: 784, the year of birth, a check digit (Luhn)."""
    return digits.startswith("784") and digits[3:5] in ("19", "20") and luhn(digits)


def sa_id(digits: str) -> bool:
    """Saudi citizen (1) or resident (2): Luhn."""
    return digits[0] in "12" and luhn(digits)


def kw_civil(digits: str) -> bool:
    """Kuwaiti civil id: century, birth date, mod 11."""
    return (
        digits[0] in "23"
        and yymmdd(digits[1:7])
        and 11 - weighted(digits, (2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2), 11) == int(digits[11])
    )


def lk_nic(digits: str) -> bool:
    """Sri Lankan identity card since 2016: year of birth and day of the year."""
    return digits[:2] in ("19", "20") and 1 <= int(digits[4:7]) % 500 <= 366


def br_sus(digits: str) -> bool:
    """Brazilian health card (CNS): weights 15 to 1, mod 11."""
    return digits[0] in "12789" and weighted(digits, tuple(range(15, 0, -1)), 11) == 0


def vn_cccd(digits: str) -> bool:
    """Vietnamese citizen id: province 001 to 096, century and sex, year."""
    return digits[0] == "0" and 1 <= int(digits[:3]) <= 96 and digits[3] in "0123"


def ng_nin(digits: str) -> bool:
    """Nigerian NIN has no public check digit: eleven digits."""
    return len(set(digits)) > 3


def de_steuer_id(digits: str) -> bool:
    """German tax id: in the first ten digits one digit is there twice or three times; ISO 7064 MOD 11,10."""
    counts = sorted((digits[:10].count(digit) for digit in set(digits[:10])), reverse=True)
    if digits[0] == "0" or counts[0] not in (2, 3) or (len(counts) > 1 and counts[1] > 1):
        return False
    return iso_7064_11_10(digits)


def iso_7064_11_10(digits: str) -> bool:
    """ISO/IEC 7064, MOD 11,10."""
    product = 10
    for digit in digits[:-1]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return (product + int(digits[-1])) % 10 == 1


def gr_amka(digits: str) -> bool:
    """Birth date and Luhn."""
    return ddmmyy(digits) and luhn(digits)


def za_id(digits: str) -> bool:
    """Birth date, citizenship 0 to 2, Luhn."""
    return yymmdd(digits) and digits[10] in "012" and luhn(digits)


def kr_rrn(digits: str) -> bool:
    """A birth date and a digit for century and sex; the check digit was given up in October 2020."""
    return yymmdd(digits) and digits[6] in "123456789" and digits[6] != "9"


def eg_nid(digits: str) -> bool:
    """Century 2 or 3, birth date, governorate."""
    return digits[0] in "23" and yymmdd(digits[1:7]) and (1 <= int(digits[7:9]) <= 35 or digits[7:9] == "88")


def id_nik(digits: str) -> bool:
    """Region, birth date (the day +40 for women), serial."""
    day = int(digits[6:8])
    return (
        11 <= int(digits[:2]) <= 97 and is_month_day(int(digits[8:10]), day - 40 if day > 40 else day) and digits[12:] != "0000"
    )


def my_nric(digits: str) -> bool:
    """Birth date, place of birth."""
    return yymmdd(digits) and digits[6:8] not in (
        "00",
        "17",
        "18",
        "19",
        "20",
        "69",
        "70",
        "73",
        "80",
        "81",
        "94",
        "95",
        "96",
        "97",
    )


def cz_rc(digits: str) -> bool:
    """Birth date (the month +50 for women, +20 when a day's numbers ran out) and divisible by 11."""
    month = int(digits[2:4])
    month -= 50 if month > 50 else 0
    month -= 20 if month > 20 else 0
    return is_month_day(month, int(digits[4:6])) and (len(digits) == 9 or int(digits) % 11 == 0)


def lv_pk(digits: str) -> bool:
    """Latvian personal code: a date, or 32 for those given since 2017."""
    return digits.startswith("32") or ddmmyy(digits)


def ua_rntrc(digits: str) -> bool:
    """Ukrainian tax number of a person."""
    return weighted(digits, (-1, 5, 7, 9, 4, 6, 10, 5, 7), 11) % 10 == int(digits[9])


def mx_clabe(digits: str) -> bool:
    """Mexican bank account: weights 3, 7, 1, modulo 10."""
    products = sum((int(digit) * weight) % 10 for digit, weight in zip(digits, (3, 7, 1) * 6, strict=False) if weight)
    # The last digit's own product (weight 1) stands in the sum.
    return products % 10 == 0


def cn_ric(code: str) -> bool:
    """Chinese resident identity (GB 11643): division, birth date, ISO 7064 MOD 11-2. Divisions come and go: only their form counts."""
    if code[0] not in "12345689" or not yyyymmdd(code[6:14]):
        return False
    return "10X98765432"[weighted(code, (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2), 11)] == code[17]
