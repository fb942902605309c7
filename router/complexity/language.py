"""Which language a text seems to be in: by script, or by the small words of a few languages. A guess, for rules only."""

from __future__ import annotations

_SAMPLE_CHARS = 600
_SMALL_WORDS = {
    "en": "the of and to is in that it for what with how are you this can be on do i my",
    "de": "der die das und ist nicht ein eine wie was mit für auf ich sie den von zu im dem wir bitte",
    "fr": "le la les des et est une un que pour dans qui pas avec sur je vous ce du au comment",
    "es": "el la los las de y es una un que por para con no se del al como qué lo mi",
    "it": "il lo la gli di e è una un che per con non si della come del sono nel ho mi",
    "pt": "o a os as de e é uma um que para com não se do da como em no na eu você",
    "nl": "de het een en is niet van dat op te in met voor wat hoe ik je zijn er aan",
}
_WORDS = {language: frozenset(words.split()) for language, words in _SMALL_WORDS.items()}
# Block starts in code points, first match wins; Kana before Han, for Japanese is written in both.
_SCRIPTS = (
    ("ja", 0x3040, 0x30FF),
    ("ko", 0xAC00, 0xD7AF),
    ("zh", 0x4E00, 0x9FFF),
    ("ru", 0x0400, 0x04FF),
    ("ar", 0x0600, 0x06FF),
    ("he", 0x0590, 0x05FF),
    ("hi", 0x0900, 0x097F),
    ("th", 0x0E00, 0x0E7F),
    ("el", 0x0370, 0x03FF),
)
LANGUAGES = (*_SMALL_WORDS, *(language for language, _, _ in _SCRIPTS))
"""All that can be guessed."""


def guess_language(text: str) -> str:
    """An ISO 639-1 code, or "" where nothing speaks for one. Cyrillic counts as `ru`, Devanagari as `hi`."""
    sample = text[:_SAMPLE_CHARS]
    if not sample.isascii():
        points = [point for point in map(ord, sample) if point > 0x036F]
        if len(points) * 5 > len(sample):
            for language, first, last in _SCRIPTS:
                if sum(1 for point in points if first <= point <= last) * 6 > len(points):
                    return language
    words = sample.lower().split()
    scores = {language: sum(1 for word in words if word in known) for language, known in _WORDS.items()}
    best = max(scores, key=lambda language: scores[language])
    return best if scores[best] >= 2 or (words and scores[best] * 3 >= len(words)) else ""
