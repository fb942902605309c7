"""Words that stand beside an identifier and say what it is, in the languages users write, and words that say it is none.

They are folded like the text they are looked for in. A number whose check digit fits is common; one whose check digit fits and
that somebody calls a tax number is a tax number.
"""

from __future__ import annotations

from enum import StrEnum

import re2

from router.residency.classify.fold import fold


class Cue(StrEnum):
    """What a word near a candidate speaks of."""

    CARD = "card"
    BANK = "bank"
    PERSON = "person"
    HEALTH = "health"
    PHONE = "phone"
    PASSPORT = "passport"
    LICENCE = "licence"
    DEVICE = "device"
    BENIGN = "benign"
    """An order, a part, a version: what looks like an identifier here is none."""


_WORDS: dict[Cue, str] = {
    Cue.CARD: "card|visa|mastercard|amex|american express|karte|kartennummer|kreditkarte|carte|tarjeta|carta di credito|carta|cartao|"
    "creditcard|kaart|karta|karty|kreditkort|kortnummer|kort|kortti|luottokortti|kart|karti|карта|карты|карту|картой|card number|"
    "cc|pan|信用卡|卡号|银行卡|カード|カード番号|카드|بطاقة|כרטיס|कार्ड|cvv|cvc",
    Cue.BANK: "iban|bank|account|acct|a/c|konto|kontonummer|bankverbindung|compte|cuenta|conto|conta|rekening|rekeningnummer|"
    "rachunek|konta|ucet|cont bancar|hesap|счет|счёт|рахунок|账户|账号|口座|계좌|sort code|routing|aba|clabe|cbu|bsb|swift|bic|rib|"
    "wire|transfer|überweisung|virement|bonifico|transferencia|przelew|حساب|חשבון|खाता|giro|bankgiro|tilinumero",
    Cue.PERSON: "ssn|social security|sin|social insurance|national id|national identity|national insurance|nino|identity|"
    "id number|id no|id card|id nr|id num|personal number|personal id|identification|citizen|taxpayer|tax id|tax no|tax number|tax file|tfn|tin|itin|"
    "utr|ppsn?|aadhaar|aadhar|uidai|pan card|voter|nric|fin|my number|mynumber|resident|mykad|cnic|nik|ktp|steuer-?id|steuernummer|"
    "steueridentifikationsnummer|idnr|tax identification|sozialversicherungsnummer|svnr|sv-?nummer|rentenversicherungsnummer|ausweis|ausweisnummer|"
    "personalausweis|ahv|avs|numero de securite sociale|securite sociale|nir|insee|numero fiscal|identifiant|carte d'identite|cni|spi|"
    "piece d'identite|registre national|rijksregister|rijksregisternummer|niss|dni|nie|nif|documento|documento de identidad|cedula|curp|rfc|"
    "clave|rut|run|cuil|cuit|seguridad social|numero de identidad|codice fiscale|c\\.? ?f\\.?|carta d'identita|partita iva|contribuinte|"
    "cartao de cidadao|cpf|rg|identidade|bsn|burgerservicenummer|sofinummer|pesel|nip|dowod|dowodu|osobist\\w*|rodne cislo|rc|rodneho|"
    "cnp|cod numeric|egn|егн|oib|emso|jmbg|szemelyi|taj|adoazonosito|amka|αμκα|αφμ|afm|personnummer|personnr|cpr|cpr-?nummer|fodselsnummer|"
    "fnr|henkilotunnus|hetu|isikukood|asmens kodas|personas kods|kennitala|tc kimlik|tckn|t\\.?c\\.?|kimlik|vergi|инн|снилс|паспорт\\w*|"
    "удостоверени\\w*|личност\\w*|рнокпп|іпн|ідентифікаційн\\w*|身份证|身份证号|身份證|證件|证件|マイナンバー|個人番号|주민등록번호|주민번호|"
    "रहिवासी|आधार|पहचान|هوية|الهوية|رقم قومي|تعودת זהות|ת\\.?ז\\.?|תעודת זהות|מספר זהות|بطاقة الهوية|medicare|id|nin|bvn|ghana card|"
    "ktp|tinh|cccd|cmnd|can cuoc|bat dau|เลขประจำตัวประชาชน|บัตรประชาชน|npi|dea|ein|pps number|personal code|ident",
    Cue.HEALTH: "nhs|patient\\w*|mrn|medical|health|hospital|clinic|chi number|medicare|medicaid|mbi|insurance|versicherten\\w*|"
    "krankenversicher\\w*|krankenkasse|kvnr|gesundheitskarte|patienten\\w*|fallnummer|dossier medical|carte vitale|mutuelle|hopital|"
    "historia clinica|tarjeta sanitaria|paciente|paziente|tessera sanitaria|cartella clinica|prontuario|cartao sus|sus|utente|patientnummer|"
    "zorgverzekering\\w*|pacjent\\w*|potilas|hasta|пациент\\w*|полис\\w*|病历|病历号|患者|医保|カルテ|保険証|診察券|환자|진료|रोगी|مريض|חולה|npi|nhi|"
    "ihi|phn|health card|ramq|ohip|krank\\w*|sygesikring|insurer|prescription|rezept",
    Cue.PHONE: "phone|tel|telephone|mobile|cell|cellphone|fax|call|text|sms|whatsapp|signal|telegram|dial|reach|contact|ring|telefon\\w*|handy|"
    "handynummer|mobil\\w*|rufnummer|anrufen|rückruf|erreich\\w*|ruf|durchwahl|telephoner|portable|appelez|appeler|joindre|numero de tel|"
    "telefono|movil|celular|llam\\w*|cellulare|chiam\\w*|telemovel|telefone|lig\\w{1,3}|telefoon|telefoonnummer|bel|bellen|mobiel|"
    "komork\\w*|zadzwon\\w*|dzwon\\w*|numer telefonu|telefonnummer|ring|puhelin|gsm|cep|ara|тел|телефон\\w*|мобильн\\w*|звон\\w*|позвон\\w*|"
    "номер|电话|手机|手机号|联系|電話|携帯|전화|휴대폰|연락처|फोन|मोबाइल|هاتف|جوال|اتصل|טלפון|נייד|โทร|dien thoai|sdt",
    Cue.PASSPORT: "passport\\w*|reisepass\\w*|pass-?nr|passnummer|passeport|pasaporte|passaporto|passaporte|paspoort\\w*|paszport\\w*|pas\\w{0,2} nr|"
    "passi|pasaport|паспорт\\w*|护照|護照|パスポート|旅券|여권|جواز|דרכון|पासपोर्ट|travel document|ho chieu",
    Cue.LICENCE: "licen[cs]e|driver'?s?|driving|dl|führerschein\\w*|fahrerlaubnis|permis|permis de conduire|carnet de conducir|licencia|patente|"
    "carta de conducao|cnh|rijbewijs\\w*|prawo jazdy|prawa jazdy|korkort|ajokortti|ehliyet|водительск\\w*|驾照|免許|운전면허",
    Cue.DEVICE: "imei|meid|device|handset|mac address|serial of my phone|udid|imsi|iccid|sim",
    Cue.BENIGN: "order\\w*|invoice\\w*|inv|tracking|shipment|parcel|isbn\\w*|issn|doi|ean|upc|gtin|barcode|sku|part|parts|p/n|pn|item|article|art\\.?-?nr|"
    "artikel\\w*|product|produkt\\w*|produit|producto|prodotto|model|modell\\w*|modele|modelo|version|build|release|revision|rev|commit|hash|sha\\d*|md5|checksum|uuid|"
    "guid|ticket|case|issue|bug|jira|pr|batch|lot|charge|chargennummer|serial|s/n|timestamp|epoch|unix|port|pid|line|row|offset|bytes|"
    "population|einwohner|habitants|poblacion|revenue|umsatz|pixel\\w*|resolution|coordinates|latitude|lat|lon|gps|bestellung|bestell\\w*|bestellnummer|"
    "auftrag\\w*|rechnung\\w*|sendung\\w*|paket\\w*|lieferschein|commande|facture|colis|pedido|factura|envio|ordine|fattura|spedizione|"
    "encomenda|fatura|rastreio|bestelling|factuur|pakket|zamowieni\\w*|faktur\\w*|przesylk\\w*|bestallning|ordrenummer|ordre|siparis|"
    "заказ\\w*|счет-фактур\\w*|накладн\\w*|трек\\w*|订单|订单号|快递|単号|注文|注文番号|송장|주문|ऑर्डर|طلب|פריט|הזמנה|catalog\\w*|patent|cas|"
    "firmware|driver version|schema|chapter|section|page|figure|table|arxiv|pmid|job|run id|trace|span|session|request|transaction|seq\\w*|"
    "error code|code|duns|vin|score|pi|random|test data|prime|constant|reference|ref",
}


def _pattern(words: str, table: dict[int, str]) -> str:
    """One RE2 pattern of all words; Latin ones stand alone, those of scripts without spaces anywhere."""
    parts = []
    for word in dict.fromkeys(words.split("|")):
        folded = fold(word, table).text.lower()
        latin = folded.isascii()
        parts.append(rf"\b{folded}(?:\b|$|[^a-z])" if latin else folded)
    return "(?i)" + "|".join(parts)


class Cues:
    """The compiled words: one automaton for all."""

    __slots__ = ("_order", "_set")

    def __init__(self, table: dict[int, str]) -> None:
        self._order = tuple(_WORDS)
        self._set = re2.Set.SearchSet()
        for cue in self._order:
            self._set.Add(_pattern(_WORDS[cue], table))
        self._set.Compile()

    def near(self, before: str, after: str) -> frozenset[Cue]:
        """Cues in the words before a candidate and after it; `_` counts as a space, as in `customer_ssn`."""
        found = self._set.Match(f"{before} {after}".replace("_", " ").encode("utf-8", "replace"))
        return frozenset(self._order[i] for i in found or ())
