"""Texts of training files that hold token ids, by the encoder's own tokenizer."""

from collections.abc import Sequence

from dptdr.model import Backbone

_MIN_EQUAL = 0.9
"""Share of a text's tokens that must come back when it is tokenized again."""


class TokenTexts:
    """Turns token ids into texts.

    Args:
        backbone: Its tokenizer must be the one that made the ids.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._tokenizer = backbone.tokenizer
        self._checked = False

    def decode(self, ids: Sequence[int]) -> str:
        """Return a text; a ValueError says if the ids are another tokenizer's."""
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
                    "expected token ids of this encoder's tokenizer, got another one's (the text "
                    f"'{text[:40]}' has other ids); give the encoder that the file was made for"
                )
            self._checked = True
        return text

    def canonical(self, text: str) -> str:
        """Return a text as its own token ids decode."""
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.decode(ids) if ids else text
