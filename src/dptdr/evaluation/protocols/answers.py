"""Answer matching rules of DPR's open-domain evaluation."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

Matching = Literal["string", "regex"]

# Never part of a token: the token pattern excludes control characters.
_SEPARATOR = "\0"


@cache
def _token_pattern() -> Any:
    import regex

    return regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


def tokenize(text: str) -> list[str]:
    """Split a text into lower-cased tokens.

    Returns:
        Runs of letters, numbers and marks, and other visible characters one by one, from the text
        in canonical decomposition (NFD).

    Source:
        Karpukhin et al. 2020, DPR's simple tokenizer.
    """
    return _joined_tokens(_decompose(text)).split(_SEPARATOR)[1:-1]


@dataclass(frozen=True, kw_only=True)
class StringAnswer:
    """An answer matched as a contiguous sequence of tokens."""

    joined: str
    # Substrings required in a passage's lower-cased text; a cheap test before tokenisation.
    needed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RegexAnswer:
    """An answer in the form of a regular expression, as in CuratedTREC."""

    pattern: Any


Answer = StringAnswer | RegexAnswer


def prepare_answer(text: str, *, matching: Matching) -> tuple[Answer, str | None]:
    """Prepare an answer for repeated matching.

    Returns:
        The prepared answer, and a description of any problem. As in DPR, an answer without tokens
        and an empty expression match every passage, and an invalid expression matches none.
    """
    if matching == "regex":
        import regex

        flags = regex.IGNORECASE | regex.UNICODE | regex.MULTILINE
        fault = None if text else "the expression is empty, so every passage matches"
        try:
            return RegexAnswer(pattern=regex.compile(_decompose(text), flags=flags)), fault
        except regex.error as error:
            never = RegexAnswer(pattern=regex.compile("(?!)"))
            return never, f"not a regular expression ({error}), so no passage matches"
    tokens = tokenize(text)
    # Lower-casing a capital sigma depends on its neighbours, so text and tokens may differ.
    needed = tuple(token for token in tokens if not re.search("[σς]", token))
    fault = None if tokens else "the answer has no letter, digit or sign, so every passage matches"
    return StringAnswer(joined=_join(tokens), needed=needed), fault


def contains_answer(text: str, answers: Sequence[Answer]) -> bool:
    """Check whether a passage contains one of the answers.

    Returns:
        True if an answer's tokens are contiguous in the text, or its expression matches anywhere in
        the decomposed text.

    Source:
        Karpukhin et al. 2020, DPR's answer matching.
    """
    text = _decompose(text)
    lowered = text.lower()
    joined: str | None = None
    for answer in answers:
        if isinstance(answer, RegexAnswer):
            if answer.pattern.search(text):
                return True
        elif all(token in lowered for token in answer.needed):
            joined = joined or _joined_tokens(text)
            if answer.joined in joined:
                return True
    return False


def _decompose(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFD", text)


def _joined_tokens(decomposed: str) -> str:
    # Lower-case after joining: the separator prevents tokens from affecting each other.
    return _join(_token_pattern().findall(decomposed)).lower()


def _join(tokens: Sequence[str]) -> str:
    """Join tokens with separators, so that a sub-list is a substring."""
    return f"{_SEPARATOR}{_SEPARATOR.join(tokens)}{_SEPARATOR}" if tokens else _SEPARATOR
