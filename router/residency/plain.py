"""Whether a request is nothing but text: most are, and then nobody need look for media in it."""

from __future__ import annotations

from typing import Any


def is_plain(body: dict[str, Any]) -> bool:
    """True where every value of a parsed request is a number, a text, a list of texts, or turns of a role and a text; false says
    nothing."""
    for value in body.values():
        if type(value) is list:
            for item in value:
                if type(item) is dict:
                    if len(item) != 2 or type(item.get("content")) is not str or type(item.get("role")) is not str:
                        return False
                elif type(item) is not str:
                    return False
        elif type(value) is dict:
            return False
    return True
