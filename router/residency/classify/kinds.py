"""What can be found, in which category it stands, and what one finding says. A finding never holds the text it was found in."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Category(StrEnum):
    """The groups a rule of the configuration may name."""

    PII = "pii"
    PHI = "phi"
    FINANCIAL = "financial"
    SECRET = "secret"


class Kind(StrEnum):
    """One kind of sensitive value. Rules may name these too; redaction writes them into its placeholders."""

    EMAIL = "email"
    PHONE = "phone"
    IP_ADDRESS = "ip_address"
    NATIONAL_ID = "national_id"
    TAX_ID = "tax_id"
    PASSPORT = "passport"
    LICENCE = "licence"
    BIRTH_DATE = "birth_date"
    DEVICE_ID = "device_id"
    HEALTH_ID = "health_id"
    DIAGNOSIS = "diagnosis"
    CARD = "card"
    IBAN = "iban"
    BANK_ACCOUNT = "bank_account"
    SECRET = "secret"
    PASSWORD = "password"
    OTHER = "other"
    """What a detector of another process names in its own words."""


CATEGORY: dict[Kind, Category] = {
    **dict.fromkeys(
        (
            Kind.EMAIL,
            Kind.PHONE,
            Kind.IP_ADDRESS,
            Kind.NATIONAL_ID,
            Kind.TAX_ID,
            Kind.PASSPORT,
            Kind.LICENCE,
            Kind.BIRTH_DATE,
            Kind.DEVICE_ID,
            Kind.OTHER,
        ),
        Category.PII,
    ),
    **dict.fromkeys((Kind.HEALTH_ID, Kind.DIAGNOSIS), Category.PHI),
    **dict.fromkeys((Kind.CARD, Kind.IBAN, Kind.BANK_ACCOUNT), Category.FINANCIAL),
    **dict.fromkeys((Kind.SECRET, Kind.PASSWORD), Category.SECRET),
}


class Finding(msgspec.Struct, frozen=True, gc=False):
    """One sensitive value: what it is, where it stands in the scanned text (code points, `end` excluded), how sure we are.

    `scheme` narrows the kind, e.g. `pl.pesel`, `visa`, `github`; `confidence` is 0..1.
    """

    kind: Kind
    start: int
    end: int
    confidence: float
    scheme: str = ""

    @property
    def category(self) -> Category:
        """The group of its kind."""
        return CATEGORY[self.kind]


class Scan(msgspec.Struct, frozen=True):
    """What was found in one text. `unknown` names why the answer cannot be relied on (budget, timeout), else it is empty."""

    findings: tuple[Finding, ...] = ()
    unknown: str = ""
