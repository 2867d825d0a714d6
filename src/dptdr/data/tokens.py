"""Decode training files of token ids with the encoder's own tokenizer."""

from collections.abc import Sequence
from typing import Any

_MIN_EQUAL = 0.9
"""Minimum share of a text's tokens that must survive re-tokenization."""


class TokenTexts:
    """Decodes token ids to texts.

    Args:
        tokenizer: The Hugging Face tokenizer that produced the ids.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._checked = False

    def decode(self, ids: Sequence[int]) -> str:
        """Decode a text; raise a ValueError if the ids come from another tokenizer."""
        size = len(self._tokenizer)
        if not 0 <= min(ids) <= max(ids) < size:
            raise ValueError(
                f"expected token ids of this encoder's tokenizer, 0 to {size - 1}, got {max(ids)}"
            )
        text = str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
        if not self._checked:
            special = set(self._tokenizer.all_special_ids)
            plain = [token for token in ids if token not in special]
            again = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            equal = sum(a == b for a, b in zip(plain, again, strict=False))
            if equal < _MIN_EQUAL * len(plain):
                raise ValueError(
                    "expected token ids of this encoder's tokenizer, got different ids for the "
                    f"text '{text[:40]}'; use the encoder that the file was made for"
                )
            self._checked = True
        return text

    def canonical(self, text: str) -> str:
        """Return a text as decoded from its own token ids."""
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.decode(ids) if ids else text
