"""The held-out part: wordings, identifiers and traps written after the patterns were frozen (the commit before this file).

Other sentences than `dev`, fifteen languages, a seventh of them without any word that helps; twenty identifiers that the
development part does not have, with makers of their own; and hard negatives in other wordings and of other kinds. Nothing in the
classifier was changed for it: what it misses is in the published figure.
"""

from __future__ import annotations

import random
import string

from _classifier.identifiers import _date, _digits, _group, _luhn_digit, _search, _weighted


def no_fnr(r: random.Random) -> str:
    """Norwegian fødselsnummer."""
    while True:
        y, m, d = _date(r)
        body = f"{d:02d}{m:02d}{y % 100:02d}{_digits(r, 3)}"
        k1 = -_weighted(body, (3, 7, 6, 1, 8, 9, 4, 5, 2)) % 11
        if k1 == 10:
            continue
        k2 = -_weighted(body + str(k1), (5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11
        if k2 != 10:
            value = f"{body}{k1}{k2}"
            return r.choice([value, f"{value[:6]} {value[6:]}"])


def be_nn(r: random.Random) -> str:
    """Belgian rijksregisternummer."""
    y, m, d = _date(r)
    body = f"{y % 100:02d}{m:02d}{d:02d}{r.randint(1, 997):03d}"
    key = 97 - int(("2" if y >= 2000 else "") + body) % 97
    value = f"{body}{key:02d}"
    return r.choice([value, f"{value[:2]}.{value[2:4]}.{value[4:6]}-{value[6:9]}.{value[9:]}"])


def ch_ahv(r: random.Random) -> str:
    """Swiss AHV number."""
    body = "756" + _digits(r, 9)
    value = body + str(-_weighted(body, (1, 3) * 6) % 10)
    return r.choice([value, _group(value, (3, 4, 4, 2), ".")])


def ro_cnp(r: random.Random) -> str:
    """Romanian CNP."""
    y, m, d = _date(r)
    lead = r.choice("12") if y < 2000 else r.choice("56")
    body = f"{lead}{y % 100:02d}{m:02d}{d:02d}{r.randint(1, 46):02d}{r.randint(1, 999):03d}"
    check = _weighted(body, (2, 7, 9, 1, 4, 6, 3, 5, 8, 2, 7, 9)) % 11
    return body + str(1 if check == 10 else check)


def bg_egn(r: random.Random) -> str:
    """Bulgarian EGN."""
    y, m, d = _date(r)
    body = f"{y % 100:02d}{m + (40 if y >= 2000 else 0):02d}{d:02d}{_digits(r, 3)}"
    return body + str(_weighted(body, (2, 4, 8, 5, 10, 9, 7, 3, 6)) % 11 % 10)


def dk_cpr(r: random.Random) -> str:
    """Danish CPR."""
    y, m, d = _date(r)
    return f"{d:02d}{m:02d}{y % 100:02d}{r.choice(['-', '-', ''])}{_digits(r, 4)}"


def cz_rc(r: random.Random) -> str:
    """Czech rodné číslo."""
    y, m, d = r.randint(1955, 1999), r.randint(1, 12), r.randint(1, 28)
    body = f"{y % 100:02d}{m + r.choice((0, 50)):02d}{d:02d}"
    tail = _search(lambda: _digits(r, 4), lambda t: int(body + t) % 11 == 0)
    return f"{body}/{tail}"


def hr_oib(r: random.Random) -> str:
    """Croatian OIB."""
    body, product = _digits(r, 10), 10
    for c in body:
        product = ((int(c) + product) % 10 or 10) * 2 % 11
    return body + str((11 - product) % 10)


def pt_nif(r: random.Random) -> str:
    """Portuguese NIF."""
    body = r.choice("12") + _digits(r, 7)
    check = 11 - _weighted(body, (9, 8, 7, 6, 5, 4, 3, 2)) % 11
    value = body + str(0 if check > 9 else check)
    return r.choice([value, _group(value, (3, 3, 3), " ")])


def ie_pps(r: random.Random) -> str:
    """Irish PPS number."""
    body = _digits(r, 7)
    return body + "WABCDEFGHIJKLMNOPQRSTUV"[_weighted(body, (8, 7, 6, 5, 4, 3, 2)) % 23]


def at_svnr(r: random.Random) -> str:
    """Austrian Sozialversicherungsnummer."""
    while True:
        y, m, d = _date(r)
        serial, date = f"{r.randint(100, 999)}", f"{d:02d}{m:02d}{y % 100:02d}"
        check = (_weighted(serial, (3, 7, 9)) + _weighted(date, (5, 8, 4, 2, 1, 6))) % 11
        if check < 10:
            return r.choice([f"{serial}{check}{date}", f"{serial}{check} {date}"])


def za_id(r: random.Random) -> str:
    """South African identity number."""
    y, m, d = _date(r)
    body = f"{y % 100:02d}{m:02d}{d:02d}{_digits(r, 4)}{r.choice('01')}8"
    return body + _luhn_digit(body)


def ca_sin(r: random.Random) -> str:
    """Canadian social insurance number."""
    body = r.choice("1234567") + _digits(r, 7)
    value = body + _luhn_digit(body)
    return r.choice([value, _group(value, (3, 3, 3), " "), _group(value, (3, 3, 3), "-")])


def au_tfn(r: random.Random) -> str:
    """Australian tax file number."""
    value = _search(lambda: r.choice("12345678") + _digits(r, 8), lambda v: _weighted(v, (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0)
    return r.choice([value, _group(value, (3, 3, 3), " ")])


def sg_nric(r: random.Random) -> str:
    """Singapore NRIC."""
    body, lead = _digits(r, 7), r.choice("ST")
    total = _weighted(body, (2, 7, 6, 5, 4, 3, 2)) + (4 if lead == "T" else 0)
    return f"{lead}{body}{'JZIHGFEDCBA'[total % 11]}"


def tw_id(r: random.Random) -> str:
    """Taiwanese identity card."""
    letter = r.choice("ABCDEFGHJKLMNPQRSTUVXYWZIO")
    value = "ABCDEFGHJKLMNPQRSTUVXYWZIO".index(letter) + 10
    body = r.choice("12") + _digits(r, 7)
    total = value // 10 + value % 10 * 9 + _weighted(body, (8, 7, 6, 5, 4, 3, 2, 1))
    return f"{letter}{body}{-total % 10}"


def mx_curp(r: random.Random) -> str:
    """Mexican CURP."""
    y, m, d = _date(r)
    letters = "".join(r.choice("BCDFGHJKLMNPQRSTVWXYZ") for _ in range(6))
    body = f"{letters[0]}{r.choice('AEIOU')}{letters[1:3]}{y % 100:02d}{m:02d}{d:02d}{r.choice('HM')}{r.choice(['DF', 'JC', 'NL', 'MC'])}{letters[3:]}"
    body += "0" if y < 2000 else "A"
    table = string.digits + "ABCDEFGHIJKLMN" + "&" + "OPQRSTUVWXYZ"
    return body + str(-sum(table.index(c) * (18 - i) for i, c in enumerate(body)) % 10)


def cl_rut(r: random.Random) -> str:
    """Chilean RUT."""
    number = str(r.randint(5_000_000, 25_000_000))
    total = sum(int(c) * (2 + i % 6) for i, c in enumerate(reversed(number)))
    check = "0123456789K0"[(11 - total % 11)]
    dotted = f"{int(number):,}".replace(",", ".")
    return f"{dotted}-{check}"


def us_mbi(r: random.Random) -> str:
    """US Medicare beneficiary identifier."""
    letters = "ACDEFGHJKMNPQRTUVWXY"
    c = lambda s: r.choice(s)  # noqa: E731 - used nine times in one line
    mix = letters + string.digits
    return f"{c('123456789')}{c(letters)}{c(mix)}{c(string.digits)}-{c(letters)}{c(mix)}{c(string.digits)}-{c(letters)}{c(letters)}{_digits(r, 2)}"


def gr_amka(r: random.Random) -> str:
    """Greek AMKA."""
    y, m, d = _date(r)
    body = f"{d:02d}{m:02d}{y % 100:02d}{_digits(r, 4)}"
    return body + _luhn_digit(body)


def imei(r: random.Random) -> str:
    """A handset's IMEI."""
    body = "35" + _digits(r, 12)
    return body + _luhn_digit(body)


def ru_inn(r: random.Random) -> str:
    """Russian INN of a person."""
    body = r.choice(["77", "78", "50", "66"]) + _digits(r, 8)
    body += str(_weighted(body, (7, 2, 4, 10, 3, 5, 9, 4, 6, 8)) % 11 % 10)
    return body + str(_weighted(body, (3, 7, 2, 4, 10, 3, 5, 9, 4, 6, 8)) % 11 % 10)


MAKERS = {
    maker.__name__: maker
    for maker in (
        no_fnr, be_nn, ch_ahv, ro_cnp, bg_egn, dk_cpr, cz_rc, hr_oib, pt_nif, ie_pps, at_svnr, za_id, ca_sin, au_tfn, sg_nric, tw_id,
        mx_curp, cl_rut, us_mbi, gr_amka, imei, ru_inn,
    )
}  # fmt: skip

POSITIVE: dict[str, tuple[str, ...]] = {
    "card": (
        "the guest wants to pay with {}, expires 09/28, please book it",
        "Könnten Sie den Betrag bitte von {} abbuchen? Gültig bis 11/27.",
        "Le client a laissé ce numéro : {}, à débiter demain",
        "Necesito que devuelvan el cargo hecho en {} la semana pasada",
        "{}",
        "このカード {} が使えません。理由を教えてください",
        "hej, kan ni byta ut {} mot ett nytt kort?",
    ),
    "iban": (
        "payout details: beneficiary Novak, {}, reference 2291",
        "Die Miete geht künftig auf das Konto {} der Hausverwaltung.",
        "Voici mon RIB pour le remboursement {}",
        "stort het bedrag op {} ten name van Jansen",
        "proszę o przelew na rachunek {}",
        "{}\n",
        "el pago debe llegar a {} antes del viernes",
    ),
    "us_ssn": (
        "For the background check you'll need my social, it's {}.",
        "Employee record: name=Doe, ssn={}, dept=42",
        "W-2 shows {} but payroll has a different one",
        "Draft a letter to the IRS about account holder {}",
    ),
    "gb_nhs": (
        "Mrs Evans, NHS no. {}, was discharged on Tuesday",
        "please chase the blood results for {} at the surgery",
        '{"nhs_number": "{}", "ward": "7B"}',
        "referral letter attached, NHS: {}",
    ),
    "gb_nino": ("my NINO? it's {}, same as on the payslip", "HMRC wrote to me quoting {}", "payroll: {} Smith, tax code 1257L"),
    "fr_nir": (
        "Sur ma carte vitale il est écrit {}, est-ce correct ?",
        "l'assurée ({}) demande le remboursement de ses soins",
        "n° de sécu {} à reporter sur le formulaire",
        "{}",
    ),
    "de_steuer_id": (
        "Für die Lohnabrechnung brauchen Sie sicher meine Identifikationsnummer: {}",
        "Das Finanzamt will die {} auf jedem Schreiben sehen",
        "Steuerliche IdNr {} / Finanzamt Köln-Süd",
    ),
    "de_kvnr": (
        "Auf der Gesundheitskarte steht {}.",
        "Die Patientin ist gesetzlich versichert ({}), Barmer",
        "Bitte KV-Nummer {} eintragen",
    ),
    "it_cf": (
        "La fattura va intestata a Rossi, {}, via Roma 3",
        "il paziente ha fornito {} al triage",
        "c.f. del richiedente: {}",
    ),
    "es_dni": (
        "el titular del contrato, con NIF {}, solicita la baja",
        "identificado con {} ante el notario",
        "Nombre: Lucía Gómez; doc.: {}",
    ),
    "pl_pesel": ("Umowę zawarto z panem Nowakiem, nr PESEL {}, zamieszkałym w Łodzi", "pacjentka {} zgłosiła ból głowy", "{}"),
    "nl_bsn": (
        "Voor de loonheffing is mijn burgerservicenummer {} nodig",
        "cliënt met BSN {} heeft gebeld",
        "patiënt (bsn: {}) komt morgen langs",
    ),
    "se_pnr": (
        "Kunden med personnummer {} vill säga upp avtalet",
        "Jag är född {} och söker bostad",
        "{} har legitimerat sig med BankID",
    ),
    "fi_hetu": ("Asiakkaan henkilötunnus on {} ja osoite Mannerheimintie 5", "potilas {} saapui päivystykseen"),
    "br_cpf": (
        "O titular, inscrito no CPF sob o nº {}, autoriza o débito",
        "cadastre o cliente {} no sistema",
        "cpf do paciente = {}",
    ),
    "cn_ric": ("请帮我核对客户张伟的证件 {} 是否有效", "{}", "办理入住需要登记公民身份号码：{}，谢谢"),
    "aadhaar": ("मेरा आधार नंबर {} है, कृपया अपडेट करें", "KYC: name Ravi, UIDAI {}", "link {} to my bank account"),
    "ru_snils": ("Сотрудник Иванов, СНИЛС {}, принят на работу", "страховой номер {} указан в анкете"),
    "tr_tckn": ("Müşterinin T.C. kimlik numarası {} olarak kayıtlı", "hasta {} acile geldi, TCKN doğrulandı"),
    "my_number": ("年末調整の書類に個人番号{}を記入してください", "従業員のマイナンバー（{}）を登録しました"),
    "kr_rrn": ("고객의 주민등록번호는 {} 이며 서울에 거주합니다", "{} 홍길동 본인 확인 부탁드립니다"),
    "phone": (
        "You can reach the landlord under {} after six.",
        "Rufen Sie mich doch morgen unter {} zurück!",
        "mon portable : {}, laissez un message",
        "si no contesto, el móvil de mi mujer es {}",
        "WhatsApp: {}",
        "Wichtig! Notfallkontakt Mutter {}",
        "{}",
    ),
    "email": (
        "cc {} on every reply please",
        "Rechnung bitte an {} schicken",
        "mon adresse: {}",
        "{} 宛に送ってください",
        "контакт: {}",
    ),
    "ip": ("failed ssh login for root from {} port 22", "der Besucher kam von {}", "block {} at the firewall"),
    "passport": (
        "traveller holds a French passport, number {}, valid to 2031",
        "mein Reisepass ({}) läuft ab",
        "nº de pasaporte: {}",
        "パスポート番号は {} です",
        "паспорт № {} выдан в 2015 году",
    ),
    "mrn": (
        "Pt with medical record number {} complains of chest pain",
        "Fallnummer {} bitte in die Akte",
        "dossier patient {} : fracture",
        "chart no. {} reviewed",
    ),
    "token": (
        "my curl fails: -H 'Authorization: Bearer {}'",
        "I accidentally pushed {} to GitHub, what now?",
        'SECRET_KEY = "{}"',
        "{}",
    ),
    "no_fnr": ("Fødselsnummeret mitt er {}", "pasient {} innlagt i natt"),
    "be_nn": ("mijn rijksregisternummer is {}", "numéro national {} de la requérante", "{}"),
    "ch_ahv": ("Meine AHV-Nummer: {}", "no AVS {} de l'assuré", "{}"),
    "ro_cnp": ("Clientul cu CNP {} a depus cererea", "{}"),
    "bg_egn": ("ЕГН на пациента: {}", "лице с ЕГН {}"),
    "dk_cpr": ("Mit CPR-nummer er {}", "borger {} har søgt om tilskud, cpr tjekket"),
    "cz_rc": ("Klient má rodné číslo {}", "pacient {} z oddělení B"),
    "hr_oib": ("OIB stranke: {}", "moj OIB je {}"),
    "pt_nif": ("fatura com contribuinte {}", "O meu NIF é {}"),
    "ie_pps": ("my PPS number is {}", "Revenue asked for {} again"),
    "at_svnr": ("Sozialversicherungsnummer {} bei der ÖGK", "SVNR: {}"),
    "za_id": ("SA ID number {} for the FICA check", "{}"),
    "ca_sin": ("my SIN is {} and I live in Toronto", "social insurance no: {}"),
    "au_tfn": ("tax file number {} for my super fund", "TFN {}"),
    "sg_nric": ("NRIC {} for the HDB application", "{}"),
    "tw_id": ("我的身分證字號是{}", "ID {} 已驗證"),
    "mx_curp": ("mi CURP es {}", "{} está en el padrón"),
    "cl_rut": ("RUT del cliente {}", "boleta a nombre de {}"),
    "us_mbi": ("Medicare card shows {}", "beneficiary {} is eligible for part B"),
    "gr_amka": ("Ο ΑΜΚΑ μου είναι {}", "AMKA {}"),
    "imei": ("stolen handset, IMEI {}", "the device's imei is {}"),
    "ru_inn": ("ИНН физического лица {}", "{} — мой ИНН"),
}

BENIGN = {
    "case_id": lambda r: r.choice([f"{_digits(r, 9)}", f"CAS-{_digits(r, 5)}-{_digits(r, 4)}", f"#{_digits(r, 7)}"]),
    "semver": lambda r: f"v{r.randint(0, 9)}.{r.randint(0, 40)}.{r.randint(0, 20)}-rc.{r.randint(1, 9)}+build.{_digits(r, 8)}",
    "ean": lambda r: _ean(r),
    "iso_time": lambda r: f"2026{r.randint(1, 12):02d}{r.randint(1, 28):02d}T{r.randint(0, 23):02d}{r.randint(0, 59):02d}{r.randint(0, 59):02d}",
    "sci": lambda r: r.choice([f"{r.randint(1, 9)}.{_digits(r, 9)}e-{r.randint(1, 30)}", f"0.{_digits(r, 12)}", f"1/{_digits(r, 6)}"]),
    "docker": lambda r: f"sha256:{r.randbytes(32).hex()}",
    "mesh": lambda r: f"{r.randint(1000, 9999)}x{r.randint(1000, 9999)}",
    "range": lambda r: f"{r.randint(1900, 1999)}-{r.randint(2000, 2030)}",
    "matrix": lambda r: " ".join(str(r.randint(0, 99)) for _ in range(9)),
    "invoice": lambda r: r.choice([f"RE-2026-{_digits(r, 5)}", f"INV{_digits(r, 8)}", f"F2026/{_digits(r, 6)}"]),
    "path": lambda r: f"/var/log/app-{_digits(r, 8)}/{r.randbytes(6).hex()}.log:{r.randint(1, 999)}",
    "chess": lambda r: r.choice(["1. e4 e5 2. Nf3 Nc6 3. Bb5 a6 4. Ba4 Nf6", "52.379189, 4.899431", "2^31 - 1 = 2147483647"]),
    "money": lambda r: r.choice([f"€ {r.randint(1, 99)}.{_digits(r, 3)}.{_digits(r, 3)},{_digits(r, 2)}", f"${r.randint(1, 9)},{_digits(r, 3)},{_digits(r, 3)}"]),
    "arxiv": lambda r: r.choice([f"arXiv:2{r.randint(0, 5)}{r.randint(1, 12):02d}.{_digits(r, 5)}", f"doi:10.{r.randint(1000, 9999)}/s{_digits(r, 5)}-0{_digits(r, 2)}-{_digits(r, 5)}-{r.randint(0, 9)}"]),
    "hexcolor": lambda r: f"#{r.randbytes(3).hex()} rgb({r.randint(0, 255)}, {r.randint(0, 255)}, {r.randint(0, 255)})",
    "part": lambda r: r.choice([f"{_digits(r, 3)}-{_digits(r, 4)}-{_digits(r, 2)}", f"{_digits(r, 5)}.{_digits(r, 4)}", f"LM{_digits(r, 4)}-{r.choice('ABC')}", f"{_digits(r, 4)} {_digits(r, 3)} {_digits(r, 3)}"]),
    "flight": lambda r: r.choice([f"LH{_digits(r, 4)}", f"BA {_digits(r, 3)}", f"PNR {''.join(r.choice(string.ascii_uppercase) for _ in range(6))}"]),
    "secret_talk": lambda r: r.choice(["the password is required", "a token bucket with 1000 tokens", "rotate the API key every 90 days", "what is a bearer token?", "the secret is to whisk slowly"]),
    "memory": lambda r: f"0x{r.randbytes(8).hex()}",
}  # fmt: skip


def _ean(r: random.Random) -> str:
    body = r.choice(["400", "501", "730", "871"]) + _digits(r, 9)
    return body + str(-_weighted(body, (1, 3) * 6) % 10)


NEGATIVE: dict[str, tuple[str, ...]] = {
    "order": (
        "I still have not received {}, ordered last month",
        "Ihre Bestellnummer lautet {}.",
        "numéro de commande : {}",
        "nr zamówienia {}",
        "注文番号 {} の状況は?",
    ),
    "version": ("pip says {} conflicts with numpy", "seit dem Update auf {} stürzt es ab", "release notes for {}"),
    "isbn": ("I'm looking for {} in hardcover", "Das Buch hat die ISBN {}.", "libro con código {}"),
    "timestamp": ("expires_at: {}", "Der Server startete um {} neu", "created={} updated=null"),
    "uuid": ("delete the row with key {}", "correlation-id: {}", "id={}"),
    "git": ("cherry-pick {} onto main", "fixed in {}", "bisect points at {}"),
    "product": ("do you have {} in stock?", "Ersatzteil {} nachbestellen", "réf. {}"),
    "part_like_phone": ("capacitor {} datasheet", "we need 20 pieces of {}", "gasket kit {}"),
    "amount": ("the city has {} inhabitants", "Umsatz: {} Euro", "budget de {} euros"),
    "coordinates": ("fly the drone to {}", "Position {}"),
    "local_address": ("curl http://{}/health", "the container listens on {}"),
    "log_line": ("why do I see this: {}", "kernel: {}"),
    "placeholder": ("in the docs it says {}", "replace this: {}"),
    "tracking": ("where is parcel {}", "Paket {} hängt fest", "numéro de suivi {}"),
    "case_id": ("support case {} is still open", "see ticket {}", "Vorgang {} wurde geschlossen"),
    "semver": ("docker pull app:{}", "tag {} is broken"),
    "ean": ("scan barcode {} at the till", "EAN {} nicht gefunden"),
    "iso_time": ("backup-{}.tar.gz is corrupt", "snapshot taken {}"),
    "sci": ("the loss went down to {}", "epsilon = {}"),
    "docker": ("image digest {}", "verify {}"),
    "mesh": ("render at {}", "Auflösung {}"),
    "range": ("the war of {}", "Zeitraum {}"),
    "matrix": ("invert the matrix {}", "sort these: {}"),
    "invoice": ("Rechnung {} ist bezahlt", "invoice {} overdue"),
    "path": ("tail -f {}", "error in {}"),
    "chess": ("explain {}", "what about {} ?"),
    "money": ("der Preis beträgt {}", "we raised {}"),
    "arxiv": ("summarise {}", "cite {}"),
    "hexcolor": ("use {} for the border", "background: {}"),
    "part": ("order two of {} from Mouser", "Bauteil {} ist abgekündigt", "part number {}"),
    "flight": ("is {} on time?", "Flug {} verspätet"),
    "secret_talk": ("{}", "hint: {}"),
    "memory": ("segfault at {}", "pointer {}"),
}
