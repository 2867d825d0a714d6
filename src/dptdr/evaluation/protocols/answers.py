"""The answer matching rules of DPR's open-domain evaluation."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

Matching = Literal["string", "regex"]

# No token can hold it: the token pattern leaves out control characters.
_SEPARATOR = "\0"


@cache
def _token_pattern() -> Any:
    import regex

    return regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


def tokenize(text: str) -> list[str]:
    """Return the lower-cased tokens of a text.

    Returns:
        Runs of letters, numbers and marks, and single other visible characters, of the text in
        canonical decomposition (NFD).

    Source:
        Karpukhin et al. 2020, DPR's simple tokenizer. Differs: nothing.
    """
    return _joined_tokens(_decompose(text)).split(_SEPARATOR)[1:-1]


@dataclass(frozen=True, kw_only=True)
class StringAnswer:
    """An answer to match as a contiguous run of tokens."""

    joined: str
    # Substrings that a passage's lower-cased text must hold; a cheap test before tokenisation.
    needed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RegexAnswer:
    """An answer given as a regular expression, as in CuratedTREC."""

    pattern: Any


Answer = StringAnswer | RegexAnswer


def prepare_answer(text: str, *, matching: Matching) -> tuple[Answer, str | None]:
    """Prepare an answer for many comparisons.

    Returns:
        The prepared answer, and what is wrong with it. As in DPR, an answer without tokens and an
        empty expression match every passage, and a broken expression matches none.
    """
    if matching == "regex":
        import regex

        flags = regex.IGNORECASE | regex.UNICODE | regex.MULTILINE
        fault = None if text else "the expression is empty, every passage counts"
        try:
            return RegexAnswer(pattern=regex.compile(_decompose(text), flags=flags)), fault
        except regex.error as error:
            never = RegexAnswer(pattern=regex.compile("(?!)"))
            return never, f"not a regular expression ({error}), no passage counts"
    tokens = tokenize(text)
    # A capital sigma is lower-cased by its neighbours, so a whole text may differ from its tokens.
    needed = tuple(token for token in tokens if not re.search("[σς]", token))
    fault = None if tokens else "the answer has no letter, digit or sign, every passage counts"
    return StringAnswer(joined=_join(tokens), needed=needed), fault


def contains_answer(text: str, answers: Sequence[Answer]) -> bool:
    """Return whether a passage's text contains one of the answers.

    Returns:
        True if an answer's tokens follow one another in the text, or its expression is
        found anywhere in the decomposed text.

    Source:
        Karpukhin et al. 2020, DPR's answer matching. Differs: nothing.
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
    # Lower-cased after joining: the separator keeps tokens from changing one another.
    return _join(_token_pattern().findall(decomposed)).lower()


def _join(tokens: Sequence[str]) -> str:
    """Return tokens between separators, so that a sub-list is a substring."""
    return f"{_SEPARATOR}{_SEPARATOR.join(tokens)}{_SEPARATOR}" if tokens else _SEPARATOR
