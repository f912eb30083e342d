"""The words of a short English text that carry meaning. Not covered: synonyms, and any grammar beyond a plural s."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_]+|\d+")
_FILLERS = frozenset(
    [
        *(
            "a",
            "an",
            "and",
            "are",
            "as",
            "at",
            "be",
            "by",
            "each",
            "every",
            "for",
            "from",
            "in",
            "into",
            "instead",
            "is",
        ),
        *("it", "its", "of", "on", "one", "over", "per", "so", "that", "the", "their", "them", "then", "this", "to"),
        *("use", "using", "via", "which", "with"),
    ]
)


def tokens(text: str) -> list[str]:
    """Words in lower case and the singular, and numbers: 64 and 128 are two different tiles."""
    return [_singular(word) for word in _WORD.findall(text.lower()) if word not in _FILLERS]


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
