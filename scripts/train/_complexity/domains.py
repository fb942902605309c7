"""The domain head: which kind of work a text is, from the subjects of the benchmarks and from a small grammar of requests.

There is no public outcome data for translation, extraction and chat; their examples come from the templates below, so on them
the head is only as good as its lexicon. That is said here and in the README, and a rule can always overrule the head.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import Ridge

from _complexity.data import Outcomes
from router.complexity.features import NAMES

DOMAINS = ("code", "maths", "law", "medicine", "science", "business", "general", "translation", "extraction", "chat")
MEASURED = DOMAINS[:7]
"""Domains for which there is labelled benchmark text."""
_SUBJECTS = {
    "code": """college_computer_science high_school_computer_science computer_security machine_learning mbpp human_eval
        computer_science""",
    "maths": """abstract_algebra college_mathematics elementary_mathematics high_school_mathematics high_school_statistics gsm8k
        math agentverse-mgsm""",
    "law": "professional_law international_law jurisprudence law",
    "medicine": """professional_medicine clinical_knowledge college_medicine anatomy virology medical_genetics human_aging
        nutrition human_sexuality health""",
    "science": """astronomy conceptual_physics high_school_physics college_physics high_school_chemistry college_chemistry
        high_school_biology college_biology electrical_engineering physics chemistry biology engineering""",
    "business": """professional_accounting marketing management business_ethics econometrics high_school_macroeconomics
        high_school_microeconomics public_relations business economics""",
}
_DOMAIN_OF = {subject: name for name, subjects in _SUBJECTS.items() for subject in subjects.split()}
_LEFT_OUT = frozenset({"formal_logic", "global_facts", "mmlu"})
"""Subjects that are two domains at once, or a mixture."""
_TONGUES = [
    "German",
    "French",
    "Spanish",
    "Italian",
    "English",
    "Portuguese",
    "Dutch",
    "Polish",
    "Chinese",
    "Japanese",
    "Arabic",
    "Turkish",
]
_PHRASES = (
    "the meeting is moved to Thursday",
    "please find the invoice attached",
    "we apologise for the delay",
    "the patient feels better",
    "good morning, how can I help you",
    "the contract ends in March",
    "our office is closed on Monday",
    "the machine is out of order",
    "das Treffen ist am Donnerstag",
    "la réunion est reportée",
    "el informe está listo",
    "thank you for your order",
)
_TRANSLATE = (
    "Translate the following text into {t}: {p}",
    "Translate to {t}: {p}",
    "How do you say '{p}' in {t}?",
    "Übersetze ins {t}: {p}",
    "Traduis en {t} : {p}",
    "What is the {t} translation of: {p}",
    "Traduce al {t}: {p}",
    "Please give me a {t} translation of this.\n{p}",
)
_EXTRACT = (
    "Extract the {f} from this text as JSON: {p}",
    "List all {f} mentioned below.\n{p}",
    "Summarize the following in {n} bullet points: {p}",
    "Pull the {f} out of this email: {p}",
    "Return a table with the {f} found in: {p}",
    "Classify this message as {f}: {p}",
    "Fasse den folgenden Text in {n} Sätzen zusammen: {p}",
    "Rewrite this paragraph and keep the {f}: {p}",
)
_FIELDS = (
    "names and dates",
    "order number and amount",
    "email addresses",
    "diagnoses",
    "parties and clauses",
    "prices",
    "keywords",
)
_CHAT = (
    "hi",
    "hello there",
    "thanks a lot!",
    "ok great, thank you",
    "how are you today?",
    "hey, can you help me?",
    "good morning!",
    "who are you?",
    "what can you do?",
    "tell me a joke",
    "hallo, wie geht's?",
    "bonjour, ça va ?",
    "lol nice",
    "please go on",
    "bye",
    "I feel bored, let's talk",
    "what should I cook tonight?",
    "write a short birthday poem for my {r}",
    "any tips for a trip with my {r}?",
    "my {r} is annoying me, what should I say?",
    "recommend a film for me and my {r}",
    "thanks, my {r} will like that",
)
_RELATIVES = ["sister", "brother", "mother", "father", "friend", "colleague", "daughter", "son", "neighbour", "boss"]


@dataclass(frozen=True)
class DomainFit:
    """Logits = bias + standardised hand @ hand + words @ table + topics @ axes, one column per domain."""

    table: np.ndarray
    hand: np.ndarray
    axes: np.ndarray
    biases: np.ndarray

    def logits(self, standard: np.ndarray, words: sp.csr_matrix, topics: np.ndarray) -> np.ndarray:
        """Logits of many rows."""
        found: np.ndarray = self.biases + standard @ self.hand + words @ self.table + topics @ self.axes
        return found


def domain_of(subject: str) -> str | None:
    """The domain of a benchmark's subject; None where it is none or several."""
    if subject in _LEFT_OUT:
        return None
    return _DOMAIN_OF.get(subject.replace(" ", "_"), "general")


def labels_of(data: Outcomes) -> np.ndarray:
    """The place of each row's domain in `DOMAINS`, -1 where it has none."""
    return np.array([-1 if (name := domain_of(str(subject))) is None else DOMAINS.index(name) for subject in data.subjects])


def written_examples(count: int = 240) -> tuple[list[str], np.ndarray]:
    """Requests for translation, extraction and chat made from templates: text and label."""
    dice = random.Random(0)
    texts, labels = [], []
    for _ in range(count):
        phrase = " ".join(dice.sample(_PHRASES, dice.randint(1, 3)))
        texts.append(dice.choice(_TRANSLATE).format(t=dice.choice(_TONGUES), p=phrase))
        texts.append(dice.choice(_EXTRACT).format(f=dice.choice(_FIELDS), n=dice.randint(2, 6), p=phrase))
        texts.append(dice.choice(_CHAT).format(r=dice.choice(_RELATIVES)))
        labels += [DOMAINS.index("translation"), DOMAINS.index("extraction"), DOMAINS.index("chat")]
    return texts, np.array(labels)


def fit_domains(
    hand: np.ndarray, words: sp.csr_matrix, topics: np.ndarray, labels: np.ndarray, count: int, penalty: float = 1.0
) -> DomainFit:
    """One-against-the-rest ridge, rows weighted against the imbalance of classes, logits sharpened to be probabilities.

    Args:
        hand: standardised features.
        words: hashed words.
        topics: see `topics_of`.
        labels: class of each row, 0..count-1.
        count: number of classes.
        penalty: ridge penalty.
    """
    dense = np.hstack([np.clip(hand, -4, 4) * TOPICAL * _HAND, topics * _TOPICS])
    rarity = _rarity(words)
    both = sp.hstack([words.multiply(rarity).tocsr(), sp.csr_matrix(dense)]).tocsr()
    frequency = np.bincount(labels, minlength=count) / len(labels)
    weights = 1.0 / np.sqrt(frequency[labels] * count)
    aims = np.where(labels[:, None] == np.arange(count)[None, :], 1.0, 0.0)
    middle = np.average(aims, axis=0, weights=weights)
    model = Ridge(alpha=penalty, solver="sparse_cg", tol=1e-3, fit_intercept=False)
    found = model.fit(both, aims - middle, sample_weight=weights).coef_.T
    table, weights_of_hand, axes = np.split(SHARPNESS * found, [words.shape[1], words.shape[1] + hand.shape[1]])
    return DomainFit(rarity[:, None] * table, _HAND * weights_of_hand, _TOPICS * axes, SHARPNESS * middle)


def _rarity(words: sp.csr_matrix) -> np.ndarray:
    """Weight of each bucket: a rare word says more of a domain than a common one; one that was seen once says nothing."""
    rows = np.bincount(words.indices, minlength=words.shape[1])
    return np.where(rows > 1, np.log(words.shape[0] / np.maximum(rows, 1)) / 4, 0.0)


_FORM = """negation wh why_how compute condition quantity number_word fraction time person function degree superlative statement
    blank roman"""
_FORM_NAMES = frozenset(f"words_{name}" for name in _FORM.split())
TOPICAL = np.array([name.startswith("words_") and name not in _FORM_NAMES for name in NAMES], float)
"""What a domain may be told by: words of its trade. Digits, signs and the form of a question are of a benchmark."""
_HAND, _TOPICS = 0.15, 0.5**0.5
"""What the parts are multiplied by before a fit that punishes large weights of all alike."""
SHARPNESS = 8.0
"""Ridge scores lie between 0 and 1; times this they are logits whose softmax is about right on unseen questions."""
