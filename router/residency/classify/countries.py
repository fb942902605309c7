"""The countries whose numbers and codes are known, by the two letters that the schemes' names begin with."""

from __future__ import annotations

from router.residency.classify.codes import CODE_NAMES
from router.residency.classify.schemes import SCHEME_NAMES

COUNTRIES = frozenset(name.partition(".")[0] for name in (*CODE_NAMES, *SCHEME_NAMES) if "." in name)
