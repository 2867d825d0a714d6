"""Words of a text for BM25, by language: stop words removed, the others stemmed.

Stemmers are Snowball's; stop words are NLTK's lists as bm25s holds them, which go back to
Snowball's. Languages without such a list keep their frequent words, which BM25 weights least.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
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
# In scripts whose vowels are marks, Python's \w would cut words at them.
_MARKED_SCRIPTS = ("arabic", "hindi", "nepali", "persian", "tamil", "yiddish")


def languages() -> list[str]:
    """Return the languages that have a stemmer."""
    import Stemmer

    # "porter" and "dutch_porter" are older stemmers of two of them.
    return [name for name in Stemmer.algorithms() if "porter" not in name]


def check_language(name: str) -> str:
    """Return the name of a language, or ``auto``.

    Raises:
        ConfigError: If there is no such language.
    """
    if name != AUTO and name not in languages():
        raise ConfigError(
            f"expected a language out of {AUTO}, {', '.join(languages())}, got '{name}'"
        )
    return name


def detect_language(texts: Sequence[str]) -> str:
    """Return the language with most stop words in some texts, English if unclear.

    Only languages with a list of stop words are told apart.
    """
    lower = (text.lower() for text in texts[:_DETECTED_TEXTS])
    # Single letters are no words of the tokenizer.
    words = Counter(word for text in lower for word in text.split() if len(word) > 1)
    found = {name: words.keys() & set(_stop_words(name)) for name in _STOP_WORDS}
    counts = {name: sum(words[word] for word in held) for name, held in found.items()}
    best = max(counts, key=lambda name: counts[name])
    # Few words say nothing ("dog" is Danish too), and many are shared ("in", "was").
    clear = counts[best] > max(2 * counts["english"], words.total() // 10)
    return best if clear and len(found[best]) >= _MIN_FOUND else "english"


def tokenizer(language: str) -> Any:
    """Return bm25s' tokenizer for a language."""
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
    """Import bm25s; where JAX is installed it starts it, and JAX would take most of a GPU."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import bm25s

    return bm25s
