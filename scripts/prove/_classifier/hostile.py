"""100 kB of text made to cost a scanner as much as possible, and how long it holds the event loop at a stretch."""

from __future__ import annotations

import random
import time

from router.residency.classify.scan import Scanner

SIZE = 100_000


def _fill(unit: str) -> str:
    return (unit * (SIZE // len(unit) + 1))[:SIZE]


def _texts() -> dict[str, str]:
    r = random.Random("hostile")
    units = {
        "digits": "1",
        "spaced digits": "1 ",
        "separated digits": "1-2.3/4 ",
        "cards": "4111 1111 1111 1111 ",
        "near cards": "4111 1111 1111 1112, ",
        "phones": "+4930901820 ",
        "ids with cues": "ssn tax id 123456789 ",
        "zero-width": "1\u200b",
        "many zero-width": "1\u200b\u200b\u200b",
        "stacked marks": "1" + "\u0301" * 8,
        "full-width": "\uff14\uff11\uff11\uff11 ",
        "circled": "\u2464\u2469\u2473",
        "emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467 ",
        "cyrillic": "Съешь ещё этих мягких булок 12345678 ",
        "addresses": "a@b.",
        "at": "a@",
        "dots": "1.1.1.1.",
        "colons": "0a:",
        "iban heads": "DE89 ",
        "passwords": "password is ",
        "labels": "passport number mrn dob born on ",
        "base64": "NDExMSAxMTExIDExMTEgMTExMSBjYXJk ",
        "base64 run": "QUJD",
        "percent": "%34%31",
        "references": "&#52;&#49;",
        "escapes": "\\u0034\\u0031",
        "armour": "-----BEGIN RSA PRIVATE KEY-----",
        "mentions of keys": "PRIVATE KEY",
        "urls": "a://b:c@d ",
        "keys": "api_key=a1B2c3D4e5F6g7H8 ",
        "hyphens": "a-1-",
        "brackets": "(1",
        "machine zone": "P<UTO<<",
        "letters": "a",
        "spaces": " ",
        "surrogates": "\ud800",
    }
    texts = {name: _fill(unit) for name, unit in units.items()}
    texts["hex"] = r.randbytes(SIZE // 2).hex()
    texts["random"] = "".join(chr(r.randrange(32, 127)) for _ in range(SIZE))
    texts["random digits"] = "".join(r.choice("0123456789 -") for _ in range(SIZE))
    texts["random unicode"] = "".join(chr(r.randrange(0x20, 0x3000)) for _ in range(SIZE))
    return texts


TEXTS = _texts()


def worst_step_ms(scanner: Scanner) -> dict[str, float]:
    """For each text the longest stretch of CPU between two points where the loop may do something else, in milliseconds."""
    worst: dict[str, float] = {}
    for name, text in TEXTS.items():
        steps = scanner.steps(text)
        longest = 0.0
        while True:
            began = time.thread_time()
            try:
                next(steps)
            except StopIteration:
                longest = max(longest, time.thread_time() - began)
                break
            longest = max(longest, time.thread_time() - began)
        worst[name] = longest * 1e3
    return worst
