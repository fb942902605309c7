"""Makes identifiers with right check digits, from a seed; the makers are written from the issuers' rules, not from the detector."""

from __future__ import annotations

import base64
import random
import string
from collections.abc import Callable

Make = Callable[[random.Random], str]


def _digits(r: random.Random, n: int) -> str:
    return "".join(r.choice("0123456789") for _ in range(n))


def _luhn_digit(body: str) -> str:
    total = 0
    for i, c in enumerate(reversed(body)):
        d = int(c) * (2 if i % 2 == 0 else 1)
        total += d - 9 if d > 9 else d
    return str(-total % 10)


def _group(text: str, sizes: tuple[int, ...], separator: str) -> str:
    parts, at = [], 0
    for size in sizes:
        parts.append(text[at : at + size])
        at += size
    return separator.join(part for part in (*parts, text[at:]) if part)


def _search(make: Callable[[], str], ok: Callable[[str], bool]) -> str:
    while True:
        value = make()
        if ok(value):
            return value


def _weighted(digits: str, weights: tuple[int, ...]) -> int:
    return sum(int(d) * w for d, w in zip(digits, weights, strict=False))


def _date(r: random.Random) -> tuple[int, int, int]:
    return r.randint(1935, 2006), r.randint(1, 12), r.randint(1, 28)


def card(r: random.Random) -> str:
    """A payment card of six networks, as people type it."""
    prefix, length = r.choice(
        [("4", 16), ("51", 16), ("2345", 16), ("55", 16), ("37", 15), ("6011", 16), ("3530", 16), ("4", 16), ("6212", 16)]
    )
    body = prefix + _digits(r, length - 1 - len(prefix))
    number = body + _luhn_digit(body)
    sizes = (4, 6, 5) if length == 15 else (4, 4, 4, 4)
    return r.choice([number, _group(number, sizes, " "), _group(number, sizes, "-"), _group(number, sizes, " ")])


def iban(r: random.Random) -> str:
    """An IBAN of ten countries."""
    country, shape = r.choice(
        [
            ("DE", "d18"),
            ("FR", "d10a11d2"),
            ("ES", "d20"),
            ("IT", "a1d10a12"),
            ("NL", "u4d10"),
            ("PL", "d24"),
            ("GB", "u4d14"),
            ("SE", "d20"),
            ("CH", "d5a12"),
            ("BE", "d12"),
        ]
    )
    body, at = "", 0
    while at < len(shape):
        kind, end = shape[at], at + 1
        while end < len(shape) and shape[end].isdigit():
            end += 1
        alphabet = {"d": string.digits, "a": string.digits + string.ascii_uppercase, "u": string.ascii_uppercase}[kind]
        body += "".join(r.choice(alphabet) for _ in range(int(shape[at + 1 : end])))
        at = end
    number = int("".join(str(int(c, 36)) for c in body + country + "00"))
    value = f"{country}{98 - number % 97:02d}{body}"
    return r.choice([value, _group(value, (4,) * 8, " "), value.lower() if r.random() < 0.2 else value])


def us_ssn(r: random.Random) -> str:
    """US social security number."""
    area = r.choice([a for a in (r.randint(1, 899) for _ in range(5)) if a != 666])
    return f"{area:03d}-{r.randint(1, 99):02d}-{r.randint(1, 9999):04d}"


def gb_nhs(r: random.Random) -> str:
    """British NHS number."""
    body = _search(lambda: r.choice("469") + _digits(r, 8), lambda b: (11 - _weighted(b, tuple(range(10, 1, -1))) % 11) != 10)
    value = body + str((11 - _weighted(body, tuple(range(10, 1, -1))) % 11) % 11)
    return r.choice([value, _group(value, (3, 3, 4), " "), _group(value, (3, 3, 4), "-")])


def gb_nino(r: random.Random) -> str:
    """British national insurance number."""
    value = r.choice("ABCEGHJKLMPRSW") + r.choice("ABCEGHJKLMPRSW") + _digits(r, 6) + r.choice("ABCD")
    if value[:2] in ("GB", "BG"):
        value = "AB" + value[2:]
    return r.choice([value, _group(value, (2, 2, 2, 2, 1), " ")])


def fr_nir(r: random.Random) -> str:
    """French social security number with its key."""
    y, m, _ = _date(r)
    body = f"{r.choice('12')}{y % 100:02d}{m:02d}{r.randint(1, 95):02d}{r.randint(1, 990):03d}{r.randint(1, 999):03d}"
    value = f"{body}{97 - int(body) % 97:02d}"
    return r.choice([value, _group(value, (1, 2, 2, 2, 3, 3, 2), " ")])


def de_steuer_id(r: random.Random) -> str:
    """German tax id: nine different digits, one of them twice."""
    pool = r.sample(string.digits, 9)
    pool.append(r.choice(pool))
    while True:
        r.shuffle(pool)
        if pool[0] != "0":
            break
    product = 10
    for d in pool:
        total = (int(d) + product) % 10 or 10
        product = total * 2 % 11
    value = "".join(pool) + str((11 - product) % 10)
    return r.choice([value, _group(value, (2, 3, 3, 3), " ")])


def de_kvnr(r: random.Random) -> str:
    """German health insurance number."""
    letter, body = r.choice(string.ascii_uppercase), _digits(r, 8)
    total = 0
    for i, c in enumerate(f"{ord(letter) - 64:02d}{body}"):
        d = int(c) * (1 + i % 2)
        total += d // 10 + d % 10
    return f"{letter}{body}{total % 10}"


def it_cf(r: random.Random) -> str:
    """Italian codice fiscale."""
    odd = dict(zip("0123456789", (1, 0, 5, 7, 9, 13, 15, 17, 19, 21), strict=True)) | dict(
        zip(
            string.ascii_uppercase,
            (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
            strict=True,
        )
    )
    consonants = "BCDFGLMNPRSTVZ"
    y, m, d = _date(r)
    body = (
        "".join(r.choice(consonants) for _ in range(6))
        + f"{y % 100:02d}{'ABCDEHLMPRST'[m - 1]}{d + r.choice((0, 40)):02d}"
        + r.choice("ABCDEFGHIL")
        + f"{r.randint(100, 899)}"
    )
    total = sum(odd[c] if i % 2 == 0 else (int(c) if c.isdigit() else ord(c) - 65) for i, c in enumerate(body))
    return body + chr(65 + total % 26)


def es_dni(r: random.Random) -> str:
    """Spanish DNI or NIE."""
    n = r.randint(10_000_000, 79_999_999)
    if r.random() < 0.3:
        lead, n = r.randint(0, 2), r.randint(1_000_000, 9_999_999)
        return f"{'XYZ'[lead]}{n:07d}{'TRWAGMYFPDXBNJZSQVHLCKE'[int(f'{lead}{n:07d}') % 23]}"
    return f"{n:08d}{r.choice(['', '-', ''])}{'TRWAGMYFPDXBNJZSQVHLCKE'[n % 23]}"


def pl_pesel(r: random.Random) -> str:
    """Polish PESEL."""
    y, m, d = _date(r)
    body = f"{y % 100:02d}{m + (20 if y >= 2000 else 0):02d}{d:02d}{_digits(r, 4)}"
    return body + str(-_weighted(body, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)) % 10)


def nl_bsn(r: random.Random) -> str:
    """Dutch burgerservicenummer."""
    return _search(
        lambda: r.choice("123456789") + _digits(r, 8),
        lambda v: (_weighted(v[:8], (9, 8, 7, 6, 5, 4, 3, 2)) - int(v[8])) % 11 == 0,
    )


def se_pnr(r: random.Random) -> str:
    """Swedish personnummer."""
    y, m, d = _date(r)
    body = f"{y % 100:02d}{m:02d}{d:02d}{_digits(r, 3)}"
    value = f"{body[:6]}-{body[6:]}{_luhn_digit(body)}"
    return r.choice([value, str(y)[:2] + value, value])


def fi_hetu(r: random.Random) -> str:
    """Finnish henkilötunnus."""
    y, m, d = _date(r)
    date, serial = f"{d:02d}{m:02d}{y % 100:02d}", f"{r.randint(2, 899):03d}"
    return date + ("A" if y >= 2000 else "-") + serial + "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(date + serial) % 31]


def br_cpf(r: random.Random) -> str:
    """Brazilian CPF."""
    body = _digits(r, 9)
    for n in (10, 11):
        body += str(_weighted(body, tuple(range(n, 1, -1))) * 10 % 11 % 10)
    return r.choice([body, f"{body[:3]}.{body[3:6]}.{body[6:9]}-{body[9:]}"])


def cn_ric(r: random.Random) -> str:
    """Chinese resident identity number."""
    y, m, d = _date(r)
    body = f"{r.choice(['110105', '310101', '440106', '510104'])}{y}{m:02d}{d:02d}{_digits(r, 3)}"
    return body + "10X98765432"[_weighted(body, (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)) % 11]


def aadhaar(r: random.Random) -> str:
    """Indian Aadhaar number (Verhoeff)."""
    value = r.choice("23456789") + _digits(r, 10)
    for c in string.digits:
        if verhoeff_ok(value + c):
            value += c
            break
    return r.choice([_group(value, (4, 4, 4), " "), value, _group(value, (4, 4, 4), " ")])


def verhoeff_ok(number: str) -> bool:
    """Verhoeff's check over the dihedral group D5, built from its definition."""

    def multiply(a: int, b: int) -> int:
        if a < 5:
            return (a + b) % 5 if b < 5 else 5 + (a + b - 5) % 5
        return 5 + (a - 5 - b) % 5 if b < 5 else (a - b) % 5

    permutation = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)
    check = 0
    for i, c in enumerate(reversed(number)):
        value = int(c)
        for _ in range(i % 8):
            value = permutation[value]
        check = multiply(check, value)
    return check == 0


def ru_snils(r: random.Random) -> str:
    """Russian SNILS."""
    body = f"{r.randint(100_000_000, 199_999_999)}"
    value = f"{body}{_weighted(body, tuple(range(9, 0, -1))) % 101 % 100:02d}"
    return f"{value[:3]}-{value[3:6]}-{value[6:9]} {value[9:]}"


def tr_tckn(r: random.Random) -> str:
    """Turkish T.C. kimlik."""
    d = [r.randint(1, 9), *(r.randint(0, 9) for _ in range(8))]
    d.append((sum(d[0:9:2]) * 7 - sum(d[1:8:2])) % 10)
    d.append(sum(d) % 10)
    return "".join(map(str, d))


def my_number(r: random.Random) -> str:
    """Japanese individual number."""
    body = r.choice("123456789") + _digits(r, 10)
    rest = _weighted(body, (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11
    value = body + str(0 if rest <= 1 else 11 - rest)
    return r.choice([value, _group(value, (4, 4, 4), " ")])


def kr_rrn(r: random.Random) -> str:
    """Korean resident registration number."""
    y, m, d = _date(r)
    return f"{y % 100:02d}{m:02d}{d:02d}-{r.choice('12' if y < 2000 else '34')}{_digits(r, 6)}"


def phone(r: random.Random) -> str:
    """A telephone number, international or national, of twelve countries."""
    n = lambda k: _digits(r, k)  # noqa: E731 - short, and used in every line below
    return r.choice(
        [
            f"+49 {r.choice(['151', '160', '171', '176'])} {r.choice('23456789')}{n(7)}",
            f"+33 6 {r.choice('1234567')}{n(1)} {n(2)} {n(2)} {n(2)}",
            f"0{r.choice('67')} {r.choice('1234567')}{n(1)} {n(2)} {n(2)} {n(2)}",
            f"+44 7{r.choice(['700', '911', '400', '825'])} {n(6)}",
            f"(212) {r.choice('23456789')}{r.choice('23456789')}{n(1)}-{n(4)}",
            f"+1 {r.choice(['415', '212', '650', '312'])} {r.choice('23456789')}{r.choice('23456789')}{n(1)} {n(4)}",
            f"{r.choice(['415', '212', '650', '312'])}-{r.choice('23456789')}{r.choice('23456789')}{n(1)}-{n(4)}",
            f"+34 6{r.choice('0123456789')}{n(1)} {n(3)} {n(3)}",
            f"+39 34{r.choice('0789')} {n(7)}",
            f"+31 6 {r.choice('12345')}{n(7)}",
            f"+48 {r.choice(['501', '602', '691', '790'])} {n(3)} {n(3)}",
            f"+7 916 {n(3)}-{n(2)}-{n(2)}",
            f"+81 90-{r.choice('123456789')}{n(3)}-{n(4)}",
            f"+86 138 {n(4)} {n(4)}",
            f"+91 98{n(3)} {n(5)}",
            f"(11) 9{r.choice('6789')}{n(3)}-{n(4)}",
        ]
    )


def email(r: random.Random) -> str:
    """An address of mail."""
    first, last = (
        r.choice(["anna", "j.smith", "maria.rossi", "peter", "li.wei", "o.kowalska", "sven"]),
        r.choice(["", "84", "_k", "+news"]),
    )
    return f"{first}{last}@{r.choice(['gmail.com', 'web.de', 'orange.fr', 'mail.ru', 'corp.example.org', 'kpmg.co.uk', 'uni-bonn.de'])}"


def ip(r: random.Random) -> str:
    """A public IPv4 address."""
    return f"{r.choice([81, 93, 151, 185, 212, 34, 52])}.{r.randint(1, 254)}.{r.randint(1, 254)}.{r.randint(1, 254)}"


def passport(r: random.Random) -> str:
    """A passport number; the words around it say so."""
    return r.choice(
        [
            f"C{r.choice('FGHJK')}{_digits(r, 7)}",
            _digits(r, 9),
            f"{_digits(r, 2)}{r.choice('ABCDFG')}{r.choice('ABCDFG')}{_digits(r, 5)}",
            f"X{_digits(r, 8)}",
        ]
    )


def mrn(r: random.Random) -> str:
    """A hospital's record number; the words around it say so."""
    return r.choice([_digits(r, 8), f"MR{_digits(r, 7)}", f"{_digits(r, 3)}-{_digits(r, 5)}", _digits(r, 7)])


def token(r: random.Random) -> str:
    """A key or token as its issuer forms it."""
    a = lambda n, s=string.ascii_letters + string.digits: "".join(r.choice(s) for _ in range(n))  # noqa: E731 - as above
    b = lambda n: base64.urlsafe_b64encode(r.randbytes(n)).decode().rstrip("=")  # noqa: E731 - as above
    return r.choice(
        [
            "AKIA" + a(16, string.ascii_uppercase + "234567"),
            "ghp_" + a(36),
            "sk-proj-" + a(48),
            "sk-ant-api03-" + a(80),
            "xoxb-" + _digits(r, 12) + "-" + _digits(r, 12) + "-" + a(24),
            "sk_live_" + a(24),
            "AIza" + a(35),
            "glpat-" + a(20),
            "hf_" + a(34),
            f"eyJhbGciOiJIUzI1NiJ9.eyJ{b(40)}.{b(32)}",
        ]
    )


STRUCTURED: dict[str, Make] = {
    "card": card,
    "iban": iban,
    "us_ssn": us_ssn,
    "gb_nhs": gb_nhs,
    "gb_nino": gb_nino,
    "fr_nir": fr_nir,
    "de_steuer_id": de_steuer_id,
    "de_kvnr": de_kvnr,
    "it_cf": it_cf,
    "es_dni": es_dni,
    "pl_pesel": pl_pesel,
    "nl_bsn": nl_bsn,
    "se_pnr": se_pnr,
    "fi_hetu": fi_hetu,
    "br_cpf": br_cpf,
    "cn_ric": cn_ric,
    "aadhaar": aadhaar,
    "ru_snils": ru_snils,
    "tr_tckn": tr_tckn,
    "my_number": my_number,
    "kr_rrn": kr_rrn,
    "phone": phone,
    "email": email,
    "ip": ip,
    "passport": passport,
    "mrn": mrn,
    "token": token,
}
