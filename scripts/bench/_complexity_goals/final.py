"""The last test: everything fitted on the development part, tested on the part kept back, once, and written down.

The record says of which code it is. A second run does not measure again: whoever tries until it fits has no held-out part.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from _complexity.data import Outcomes, held_out
from _complexity.fit import fit_gain, steady_target

from _complexity_goals import protocols

RECORD = Path(__file__).with_name("final.json")
_CHECKOUT = Path(__file__).resolve().parents[3]
_CODE = (
    "router/complexity/features.py",
    "router/complexity/words.py",
    "router/complexity/lexicon.py",
    "router/complexity/vocabulary.py",
    "scripts/train/_complexity/data.py",
    "scripts/train/_complexity/domains.py",
    "scripts/train/_complexity/fit.py",
    "scripts/train/_complexity/vectors.py",
)


@dataclass(frozen=True)
class Halves:
    """One benchmark in its two parts."""

    development: Outcomes
    kept_back: Outcomes


def part(data: Outcomes) -> Halves:
    """The development part and the part kept back; no question, and no near-duplicate of one, is in both."""
    held = held_out(data.keys)
    return Halves(data.take(np.where(~held)[0]), data.take(np.where(held)[0]))


def code_digest() -> str:
    """Names the state of everything that a fit depends on."""
    return hashlib.sha256(b"\0".join((_CHECKOUT / name).read_bytes() for name in _CODE)).hexdigest()[:16]


def read_record() -> dict[str, Any] | None:
    """What was measured when the part was used, or None before."""
    if not RECORD.exists():
        return None
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def measure_once(sets: dict[str, Outcomes]) -> dict[str, Any]:
    """Fit on the development parts, test on those kept back, and write the record.

    Raises:
        FileExistsError: the part has been used.
    """
    if RECORD.exists():
        raise FileExistsError(RECORD)
    parts = {name: part(data) for name, data in sets.items()}
    figures = [*_gains(parts), _nine(parts["llmrouter_13tasks"]), *_domains(parts)]
    record = {
        "when": datetime.now(UTC).strftime("%Y-%m-%d"),
        "code": code_digest(),
        "rows": {name: [len(halves.development), len(halves.kept_back)] for name, halves in parts.items()},
        "figures": figures,
    }
    with RECORD.open("x", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
        file.write("\n")
    return record


def _gains(parts: dict[str, Halves]) -> list[dict[str, Any]]:
    mmlu, gsm8k, pro = (parts[name] for name in ("routellm_mmlu", "routellm_gsm8k", "mmlu_pro_llama31"))
    found = [("MMLU", 0.71, mmlu, fit_gain(*_rows(mmlu.development, mmlu.development.gain)))]
    found.append(("GSM8K", 0.64, gsm8k, fit_gain(*_rows(gsm8k.development, gsm8k.development.gain))))
    target = steady_target(pro.development.gain, protocols.others_of(pro.development))
    found.append(("Llama-3.1 8B -> 70B, MMLU-Pro", 0.57, pro, fit_gain(*_rows(pro.development, target))))
    figures = [
        _figure(name, wanted, protocols.curve(fitted.predict(halves.kept_back.hand, halves.kept_back.words), halves.kept_back))
        for name, wanted, halves, fitted in found
    ]
    others = [parts[name].development for name in ("routellm_mmlu", "llmrouter_13tasks", "mmlu_pro_llama31")]
    zero = protocols.curve(protocols.zero_shot(gsm8k.kept_back, others), gsm8k.kept_back)
    return [*figures, _figure("GSM8K zero-shot", 0.60, zero)]


def _rows(data: Outcomes, target: np.ndarray) -> tuple[Any, ...]:
    return data.hand, data.words, target, data.keys


def _figure(name: str, wanted: float, found: protocols.Curve) -> dict[str, Any]:
    area = found.apgr
    return {
        "figure": f"{name}: APGR",
        "goal": wanted,
        "value": round(area.value, 4),
        "interval": [round(area.low, 4), round(area.high, 4)],
        "cpt": [round(found.cpt50, 1), round(found.cpt80, 1)],
    }


def _nine(tasks: Halves) -> dict[str, Any]:
    test = tasks.kept_back
    choice = protocols.predict_scores(tasks.development, test.hand, test.words).argmax(1)
    value = float(test.others[np.arange(len(test)), choice].mean())
    return {"figure": "choice among 9 models", "goal": 0.65, "value": round(value, 4)}


def _domains(parts: dict[str, Halves]) -> list[dict[str, Any]]:
    found = protocols.domain_scores([parts["routellm_mmlu"].development], parts["mmlu_pro_llama31"].kept_back)
    macro = float(np.mean([f1 for _, _, f1 in found.values()]))
    return [
        {"figure": "domain head: macro-F1", "goal": 0.74, "value": round(macro, 4)},
        {"figure": "domain head: law recall", "goal": 0.95, "value": round(found["law"][1], 4)},
    ]


def describe(record: dict[str, Any]) -> str:
    """The record for a terminal."""
    same = "" if record["code"] == code_digest() else "; the code has changed since, and the part is not used again"
    lines = [f"used once, on {record['when']}, with code {record['code']}{same}"]
    for row in record["figures"]:
        interval = " [{:.3f}, {:.3f}]".format(*row["interval"]) if "interval" in row else ""
        mark = "met   " if row["value"] >= row["goal"] else "MISSED"
        lines.append(f"{mark} {row['figure']:48} >= {row['goal']:<19g} {row['value']:.3f}{interval}")
    return "\n".join(lines)
