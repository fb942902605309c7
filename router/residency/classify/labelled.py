"""Values that only the words before them give away: record numbers, passports, licences, birth dates, diagnoses, passwords."""

from __future__ import annotations

import re

import msgspec
import re2

from router.residency.classify.codes import make_set
from router.residency.classify.fold import fold
from router.residency.classify.kinds import Kind
from router.residency.classify.view import View


class _Label(msgspec.Struct, frozen=True):
    kind: Kind
    words: str
    confidence: float
    scheme: str = ""


_LABELS: tuple[_Label, ...] = (
    _Label(
        Kind.HEALTH_ID,
        "mrn|medical record|patient(?:en)?-?(?:id|no|nr|nummer|number)|patient(?:'?s)? (?:id|number|record|file|chart)|hospital (?:number|no|id)|"
        "chart (?:number|no)|health (?:plan|card|insurance)(?: member)?|insurance (?:policy|member|id)|member id|subscriber id|policy number|"
        "medicaid|medicare|beneficiary|nhs|chi|versichertennummer|versicherten-?nr|krankenversicherungsnummer|patientennummer|fallnummer|aufnahmenummer|"
        "numero de dossier(?: medical)?|dossier (?:medical|patient)|numero de patient|ipp|historia clinica|numero de historia|nhc|tarjeta sanitaria|"
        "cartella clinica|tessera sanitaria|prontuario|cartao (?:nacional de saude|sus)|numero de utente|patientnummer|zorgnummer|polisnummer|"
        "numer pacjenta|karta pacjenta|journalnummer|potilasnumero|hasta no|protokol no|номер (?:пациента|полиса|карты пациента)|история болезни|"
        "病历号|病歷號|住院号|门诊号|医保卡?号?|就诊卡号|カルテ番号|患者番号|患者id|診察券番号|保険証番号|환자번호|등록번호|진료번호|건강보험",
        0.85,
        "record",
    ),
    _Label(
        Kind.PASSPORT,
        "passport|passports?|reisepass|passnummer|pass-nr|passeport|pasaporte|passaporto|passaporte|paspoort|paspoortnummer|paszport|paszportu|"
        "passnumero|pasaport|pasovy|cestovni pas|паспорта?|护照号?码?|護照號?碼?|パスポート(?:番号)?|旅券番号|여권(?:번호)?|travel document|जवाज|जوां|पासपोर्ट|جواز(?: السفر)?|דרכון",
        0.85,
    ),
    _Label(
        Kind.LICENCE,
        "driver'?s? licen[cs]e|driving licen[cs]e|licen[cs]e plate|dl no|dl number|fuhrerschein|fuhrerscheinnummer|fuhrerschein-?nr|permis de conduire|"
        "carnet de conducir|licencia de conducir|permiso de conducir|patente di guida|patente|carta de conducao|cnh|rijbewijs|rijbewijsnummer|prawo jazdy|"
        "korkort|korkortsnummer|ajokortti|ehliyet|водительско\\w+ удостоверени\\w+|驾驶证号?|驾照号?|運転免許証?(?:番号)?|운전면허(?:번호)?",
        0.8,
    ),
    _Label(
        Kind.NATIONAL_ID,
        "ssn|social security|national id|identity card|id card|identity (?:number|document)|personalausweis|ausweisnummer|ausweis|carte (?:nationale )?d'identite|cni|"
        "documento (?:nacional )?de identidad|cedula(?: de ciudadania)?|carta d'identita|bilhete de identidade|registro geral|rg|identiteitskaart|"
        "dowod osobist\\w*|dowodu osobistego|obciansky prukaz|carte de identitate|kimlik|удостоверение личности|身份证号?码?|身分證|證件號碼?|주민등록번호|아이디|マイナンバー|"
        "national insurance|taxpayer|tax id|steuernummer|steuer-id|tin|voter id|epic|nin|bvn|ghana card|cccd|cmnd|ktp|aadhaar|आधार|الرقم القومي|رقم الهوية|תעודת זהות|เลขบัตรประชาชน",
        0.72,
    ),
    _Label(
        Kind.BANK_ACCOUNT,
        "account number|account no|account #|bank account|acct|checking account|savings account|kontonummer|konto-?nr|numero de compte|numero de cuenta|cuenta bancaria|"
        "numero di conto|conto corrente|conta corrente|conta bancaria|rekeningnummer|numer konta|numer rachunku|bankkonto|tilinumero|hesap no|"
        "расчетный счет|номер счета|р/с|银行账号|银行账户|账号|口座番号|계좌(?:번호)?|sort code|routing number|clabe|bsb",
        0.75,
    ),
)
_FILLER = r"(?:[\s\"'*]{0,3}(?:number|numbers|nummer|no|nr|num|numero|numer|n°|id|code|#|is|was|are|ist|lautet|est|es|e|je|jest|to|is:|on file|reads|ends with|:|=|-|–|：|は|は、|是|为|為|이|은|는|номер|серия|№)\b?[.:=]?){0,4}[\s\"'(:=#*]{0,4}"
_TOKEN = r"([A-Z]{0,4}[\-/ ]?\d[A-Z0-9\-/.]{3,22}|[A-Z0-9]{1,5}\d[A-Z0-9]{3,18}|\d{2,4}(?: \d{2,6}){1,5})"

_BORN = (
    "date of birth|birth ?date|birthday|born(?: on| in)?|dob|d\\.o\\.b\\.?|geburtsdatum|geboren(?: am)?|geb\\.?(?: am)?|date de naissance|ne\\(?e?\\)? le|nee? le|naissance|"
    "fecha de nacimiento|nacid[oa](?: el)?|nacimiento|data di nascita|nat[oa] (?:il|a)|data de nascimento|nascid[oa](?: em| a)?|geboortedatum|geboren op|"
    "data urodzenia|urodzon\\w+|ur\\.|datum narozeni|narozen\\w*|data nasterii|nascut\\w*|fodelsedatum|fodt|fodselsdato|fodd|syntymaaika|dogum tarihi|"
    "дата рождения|родил\\w+|дата народження|г\\.р\\.|出生日期|生日|出生|生年月日|誕生日|생년월일|생일|जन्म ?तिथि|تاريخ الميلاد|תאריך לידה|ngay sinh|วันเกิด"
)
_WHEN = (
    r"((?:\d{1,2}[./\- ]{1,2}\d{1,2}[./\- ]{1,2}(?:19|20)?\d\d)|(?:(?:19|20)\d\d[./\-]\d{1,2}[./\-]\d{1,2})|(?:\d{1,2}(?:st|nd|rd|th|\.|er|o)?(?: de| of)? ?[^\s\d,.:;]{3,12}\.?,?(?: de)? (?:19|20)\d\d)"
    r"|(?:[A-Z]{3,10}\.? \d{1,2}(?:st|nd|rd|th)?,? (?:19|20)\d\d)|(?:(?:19|20)\d\d ?[年년] ?\d{1,2} ?[月월] ?\d{1,2} ?[日일]))"
)
_DIAGNOSIS = r"(?i)\b(?:icd(?:-?10)?(?:-?(?:cm|gm))?|diagnos\w*|dx|diagnose|diagnosi|diagnostic\w*|rozpoznanie|диагноз\w*|мкб(?:-?10)?|诊断|診断|진단)[^\n]{0,40}?\b([A-TV-Z]\d{2}(?:\.\d{1,3}[A-Z]?)?)\b"
_PASSWORD = (
    r"(?i)(?:password|passwort|kennwort|passphrase|passwd|pwd|mot de passe|contrasena|clave|senha|password e|wachtwoord|haslo|losenord|adgangskode|passord|salasana|sifre|"
    r"пароль|密码|密碼|パスワード|비밀번호|pin(?: code)?|пин)(?:[ \"']{0,2}(?:is|ist|est|es|e|jest|to|ar|er|on|=|:|：|は|是|为|->|—|-))+[ \"'`]{0,2}([^\s\"'`]{4,64})"
)


class LabelledFinder:
    """Finds values by the label before them."""

    __slots__ = ("_any", "_born", "_diagnosis", "_labels", "_password")

    def __init__(self, table: dict[int, str]) -> None:
        self._labels = tuple(
            (
                label,
                re2.compile(
                    rf"(?i)(?:^|[^A-Za-z])(?:{fold(label.words, table).text})(?:[^A-Za-z]|$){fold(_FILLER, table).text}{_TOKEN}"
                ),
            )
            for label in _LABELS
        )
        lead = rf"(?i)(?:^|[^A-Za-z])(?:{fold(_BORN, table).text})[^\d\n]{{0,16}}?"
        self._born = re2.compile(lead + fold(_WHEN, table).text)
        self._diagnosis = re2.compile(fold(_DIAGNOSIS, table).text)
        self._password = re2.compile(fold(_PASSWORD, table).text)
        patterns = (*(pattern for _, pattern in self._labels), self._born, self._diagnosis, self._password)
        self._any = make_set(pattern.pattern for pattern in patterns)

    def find(self, view: View) -> None:
        """Report every labelled value of this slice.

        Raises:
            OverBudget: too many candidates.
        """
        present = self._any.Match(view.text.encode("utf-8", "replace"))
        if not present:
            return
        for label, pattern in (self._labels[i] for i in present if i < len(self._labels)):
            for start, end, value in _matches(pattern, view):
                if sum(character.isdigit() for character in value) >= 4 and not _YEAR.match(value):
                    view.add(label.kind, start, end, label.confidence, label.scheme)
        for start, end, _ in _matches(self._born, view):
            view.add(Kind.BIRTH_DATE, start, end, 0.85)
        for start, end, _ in _matches(self._diagnosis, view):
            view.add(Kind.DIAGNOSIS, start, end, 0.75, "icd-10")
        for start, _, value in _matches(self._password, view):
            value = value.rstrip(".,;:!?)")
            if _is_password(value):
                view.add(Kind.PASSWORD, start, start + len(value), 0.8)


_YEAR = re.compile(r"(?:19|20)\d\d(?:[\-/.]\d{1,2}){0,2}\Z")
_NO_PASSWORD = re.compile(r"(?i)[<{$%]|[*x.•]{4,}|your|example|\(\)|[\w.]+\(|https?:|os\.|env")


def _is_password(value: str) -> bool:
    """Words do not count: a password beside its label has a digit or a sign in it."""
    return len(value) >= 4 and bool(re.search(r"\d|[!@#&^+=?]", value)) and not _NO_PASSWORD.search(value) and len(set(value)) > 2


def _matches(pattern: re2._Regexp[str], view: View) -> list[tuple[int, int, str]]:
    found = []
    for match in pattern.finditer(view.text):
        start, end = match.span(1)
        if view.owns(start):
            view.spend(1)
            found.append((start, end, match.group(1)))
    return found
