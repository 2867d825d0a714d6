"""Tokenization for BM25 by language: stop-word removal and stemming.

Stemmers are Snowball's; stop words are NLTK's lists (derived from Snowball's) as shipped with
bm25s. Languages without a list keep their frequent words, to which BM25 gives low weights.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import regex

from dptdr.errors import ConfigError

AUTO = "auto"
_STOP_WORDS = (
    *("danish", "dutch", "english", "french", "german", "italian", "norwegian", "portuguese"),
    *("russian", "spanish", "swedish", "turkish"),
)
_DETECTED_TEXTS = 1000
_MIN_FOUND = 5
# In scripts with combining vowel marks, Python's \w would split words at them.
_MARKED_SCRIPTS = ("arabic", "hindi", "nepali", "persian", "tamil", "yiddish")


def languages() -> list[str]:
    """List the languages with a stemmer."""
    import Stemmer

    # "porter" and "dutch_porter" are older stemmers for English and Dutch.
    return [name for name in Stemmer.algorithms() if "porter" not in name]


def check_language(name: str) -> str:
    """Return a language name (or ``auto``) after checking it.

    Raises:
        ConfigError: If the language is unknown.
    """
    if name != AUTO and name not in languages():
        raise ConfigError(
            f"expected one of the languages {AUTO}, {', '.join(languages())}, got '{name}'"
        )
    return name


def detect_language(texts: Sequence[str]) -> str:
    """Detect the language of some texts by their stop words; English if unclear.

    Only languages with a stop-word list can be detected.
    """
    lower = (text.lower() for text in with_plain_letters(texts[:_DETECTED_TEXTS], "english"))
    # The tokenizer drops single letters.
    words = Counter(word for text in lower for word in text.split() if len(word) > 1)
    found = {name: words.keys() & set(_stop_words(name)) for name in _STOP_WORDS}
    counts = {name: sum(words[word] for word in held) for name, held in found.items()}
    best = max(counts, key=lambda name: counts[name])
    # A few stop words prove nothing: "dog" is Danish too, and "in" and "was" are shared.
    clear = counts[best] > max(2 * counts["english"], words.total() // 10)
    return best if clear and len(found[best]) >= _MIN_FOUND else "english"


def with_plain_letters(texts: Iterable[str], language: str) -> list[str]:
    """Compose accents (Unicode NFC), and lowercase Turkish capitals, which Python does not know.

    Text from PDF files and macOS is often decomposed, and would not match what is typed.
    """
    plain = [unicodedata.normalize("NFC", text) for text in texts]
    if language == "turkish":
        return [text.replace("İ", "i").replace("I", "ı") for text in plain]
    return plain


def tokenizer(language: str) -> Any:
    """Return a bm25s tokenizer for a language, whose texts come from `with_plain_letters`."""
    import Stemmer

    splitter: str | Callable[[str], list[str]] = r"(?u)\b\w\w+\b"
    if language in _MARKED_SCRIPTS:
        splitter = regex.compile(r"[\p{L}\p{M}\p{N}_]{2,}").findall
    return _bm25s().tokenization.Tokenizer(
        splitter=splitter, stopwords=_stop_words(language), stemmer=Stemmer.Stemmer(language)
    )


def _stop_words(language: str) -> list[str]:
    if language not in _STOP_WORDS:
        return []
    name = "STOPWORDS_EN" if language == "english" else f"STOPWORDS_{language.upper()}"
    return list(getattr(_bm25s().stopwords, name))


def _bm25s() -> Any:
    """Import bm25s without letting JAX, if installed, preallocate most of the GPU memory."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import bm25s

    return bm25s
