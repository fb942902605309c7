"""Keys, tokens and passwords: by the prefixes their issuers give them, by the armour around them, by a word and their entropy."""

from __future__ import annotations

import math
import re
from collections import Counter

import re2

from router.residency.classify.kinds import Kind
from router.residency.classify.view import View

_ISSUED: tuple[tuple[str, str], ...] = (
    ("private_key", r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----[A-Za-z0-9+/=\s\\:,\-]*"),
    ("age", r"AGE-SECRET-KEY-1[0-9A-Z]{50,60}"),
    ("aws", r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b"),
    ("github", r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{40,})\b"),
    ("gitlab", r"\bgl(?:pat|dt|rt|cbt|ptt|ft|soat|agent|oas)-[A-Za-z0-9_\-]{20,64}"),
    (
        "slack",
        r"\bxox[abeoprs]-[A-Za-z0-9\-]{10,}|\bxapp-\d-[A-Z0-9]+-\d+-[a-z0-9]+|hooks\.slack\.com/services/T[A-Z0-9]+/B[A-Z0-9]+/[A-Za-z0-9]{20,}",
    ),
    ("stripe", r"\b(?:sk|rk|whsec)_(?:live_|test_)?[A-Za-z0-9]{20,}\b"),
    ("anthropic", r"\bsk-ant-[A-Za-z0-9_\-]{20,}"),
    ("openai", r"\bsk-(?:proj-|svcacct-|admin-|or-v1-)?[A-Za-z0-9_\-]{20,}"),
    ("google", r"\bAIza[A-Za-z0-9_\-]{35}|\bya29\.[A-Za-z0-9_\-]{20,}|\bGOCSPX-[A-Za-z0-9_\-]{24,40}"),
    ("jwt", r"\beyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{10,}"),
    ("sendgrid", r"\bSG\.[A-Za-z0-9_\-]{16,32}\.[A-Za-z0-9_\-]{30,60}"),
    ("npm", r"\bnpm_[A-Za-z0-9]{36}\b"),
    ("pypi", r"\bpypi-AgE[A-Za-z0-9_\-]{30,}"),
    ("huggingface", r"\bhf_[A-Za-z0-9]{30,40}\b"),
    ("vault", r"\bhv[sbr]\.[A-Za-z0-9_\-]{20,}|\bs\.[A-Za-z0-9]{24}\b"),
    ("telegram", r"\b\d{8,10}:AA[A-Za-z0-9_\-]{32,34}"),
    ("discord", r"\b[MNO][A-Za-z0-9_\-]{23,27}\.[A-Za-z0-9_\-]{6}\.[A-Za-z0-9_\-]{27,45}"),
    ("digitalocean", r"\bdo[opr]_v1_[a-f0-9]{64}\b"),
    ("shopify", r"\bshp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}\b"),
    ("databricks", r"\bdapi[a-f0-9]{32}\b"),
    ("azure", r"(?i)(?:AccountKey|SharedAccessKey)=[A-Za-z0-9+/]{40,90}={0,2}|\bsig=[A-Za-z0-9%+/]{40,90}"),
    ("twilio", r"\bSK[0-9a-f]{32}\b"),
    ("mailgun", r"\bkey-[0-9a-f]{32}\b"),
    ("linear", r"\blin_api_[A-Za-z0-9]{32,48}\b"),
    ("notion", r"\b(?:ntn_|secret_)[A-Za-z0-9]{40,50}\b"),
    ("doppler", r"\bdp\.(?:pt|st|ct|sa)\.[A-Za-z0-9]{40,44}\b"),
    ("groq", r"\bgsk_[A-Za-z0-9]{40,64}\b"),
    ("xai", r"\bxai-[A-Za-z0-9]{60,}\b"),
    ("square", r"\b(?:sq0[a-z]{3}-|EAAA)[A-Za-z0-9_\-]{22,70}"),
    ("atlassian", r"\bATATT3[A-Za-z0-9_\-=]{100,}"),
    ("sentry", r"\bsntr(?:ys|yu)_[A-Za-z0-9_\-=+/]{40,}"),
    ("grafana", r"\bgl(?:sa|c)_[A-Za-z0-9_+/=]{32,}"),
    ("tidegate", r"\btg_[A-Za-z0-9_\-]{24,80}"),
    ("credentials_in_url", r"(?i)\b[a-z][a-z0-9+.\-]{1,20}://[^\s:/@\"'<>]{0,64}:[^\s@/\"'<>]{3,}@[A-Za-z0-9\[?]"),
)
_ISSUED_PATTERN = re2.compile("|".join(f"(?:{pattern})" for _, pattern in _ISSUED).encode())
_NAMES = tuple((name, re2.compile(pattern.encode())) for name, pattern in _ISSUED)

_NAMED = re2.compile(
    rb"(?i)(?:api[ _\-]?(?:key|token|secret)|secret(?:[ _\-]?(?:access)?[ _\-]?key)?|access[ _\-]?(?:key|token)|auth(?:orization|[ _\-]?token)?"
    rb"|client[ _\-]?secret|refresh[ _\-]?token|session[ _\-]?token|bearer|token|private[ _\-]?key|encryption[ _\-]?key|signing[ _\-]?key|credentials?"
    rb"|apikey|webhook|account[ _\-]?key|cookie|clave|schl?uessel|schlussel|cle|llave|chave|chiave|sleutel|klucz)"
    rb"[\"']?(?: (?:is|ist|est|es|was|for \w{1,12}|value))?\s{0,3}[:=>]{0,2}\s{0,3}(?:basic |bearer )?[\"']?([A-Za-z0-9+/_\-.=~]{16,})"
)
_PLACEHOLDER = re.compile(
    r"(?i)example|placeholder|your[_-]?|xxxx|\*{4}|changeme|dummy|redacted|sample|insert|replace|<|>|\.\.\.|123456789012|abcdefgh|process\.env|os\.environ"
)
_UUID = re.compile(r"(?i)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_MIN_BITS = 3.1
"""Bits per character below which a value is a word, not a key: English words have about 2.5 at this length, random base64 4."""


class SecretFinder:
    """Finds keys and tokens."""

    __slots__ = ()

    def find(self, view: View) -> None:
        """Report every secret of this slice.

        Raises:
            OverBudget: too many candidates.
        """
        for match in _ISSUED_PATTERN.finditer(view.data):
            start, end = match.span()
            if view.owns(start):
                view.spend(1.5)
                self._issued(view, start, end)
        for match in _NAMED.finditer(view.data):
            start, end = match.span(1)
            if view.owns(match.start()):
                view.spend(1.5)
                confidence = _named_confidence(view.text[start:end])
                if confidence >= 0.5:
                    view.add(Kind.SECRET, start, end, confidence, "named")

    def _issued(self, view: View, start: int, end: int) -> None:
        value = view.text[start:end]
        name = next((name for name, pattern in _NAMES if pattern.match(view.data[start:end])), "")
        if name == "private_key":
            view.add(Kind.SECRET, start, end, 0.99, name)
            return
        if name == "credentials_in_url":
            password = value.rpartition("@")[0].rpartition(":")[2]
            if (
                _PLACEHOLDER.search(password)
                or password.lower() in ("password", "pass", "pwd", "secret", "port")
                or password.startswith(("$", "{", "%"))
            ):
                return
            view.add(Kind.SECRET, start, end, 0.9, name)
            return
        if _PLACEHOLDER.search(value) or bits_per_character(value[-24:]) < 2.6:
            return
        view.add(Kind.SECRET, start, end, 0.95, name)


def _named_confidence(value: str) -> float:
    if _PLACEHOLDER.search(value):
        return 0.0
    if _UUID.match(value):
        return 0.55
    kinds = sum(map(bool, (re.search(r"[a-z]", value), re.search(r"[A-Z]", value), re.search(r"\d", value))))
    digits = sum(character.isdigit() for character in value)
    if kinds < 2 or digits < 2 or value.count("/") > 3 or value.count(".") > 2:
        return 0.0
    return 0.85 if bits_per_character(value) >= _MIN_BITS else 0.0


def bits_per_character(value: str) -> float:
    """Shannon entropy of the characters of `value`, in bits."""
    if not value:
        return 0.0
    size = len(value)
    return -sum(count / size * math.log2(count / size) for count in Counter(value).values())
