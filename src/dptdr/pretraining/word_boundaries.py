"""Word boundaries in tokens, for each type of tokenizer."""

import json
import unicodedata
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import decoders

from dptdr.errors import BackboneError

Kind = Literal["wordpiece", "byte-level", "sentencepiece", "end-of-word", "word"]

# Character class at a token's edge: letters and digits, other characters, or unknown.
_LETTER, _SIGN, _UNKNOWN = 1, 2, 0
_SPACE_MARK = "\u2581"  # SentencePiece's symbol for a space.
_BYTE_SPACES = ("\u0120", "\u010a", "\u0109", "\u010d")  # Space, line feed, tab, return as bytes.


class Words:
    """A tokenizer's word rules: tokens that begin a word, tokens that may be masked.

    * WordPiece marks continuations (``##ing``).
    * Byte-level BPE and SentencePiece mark tokens that follow a space; a change from letters to
    other
      characters begins a word too, so that a comma is not masked with the preceding word.
    * Older BPE marks the end of a word (``</w>``).

    Args:
        tokenizer: A fast tokenizer.
        vocabulary: Size of the encoder's vocabulary; larger ids are never drawn.

    Raises:
        BackboneError: If the tokenizer is of none of these types.
    """

    def __init__(self, tokenizer: Any, *, vocabulary: int) -> None:
        size = max(vocabulary, len(tokenizer))
        tokens: list[str] = [""] * size
        for token, number in tokenizer.get_vocab().items():
            tokens[number] = token
        settings = json.loads(tokenizer.backend_tokenizer.to_str())
        self.kind: Kind = _kind(settings, tokens)
        special = np.ones(size, dtype=bool)
        special[[number for number, token in enumerate(tokens) if token]] = False
        special[list(tokenizer.all_special_ids)] = True
        self._special: np.ndarray = special
        marks = _marks(settings, tokens, self.kind)
        self._begins, self._ends, self._first, self._last = marks
        ordinary = np.flatnonzero(~special)
        self.ordinary: Int[np.ndarray, " ordinary"] = ordinary[ordinary < vocabulary]

    def starts(self, ids: Int[np.ndarray, " tokens"]) -> Bool[np.ndarray, " tokens"]:
        """Mark tokens that begin a word; each special token is its own word."""
        starts: Bool[np.ndarray, " tokens"] = self._begins[ids].copy()
        if len(ids) == 0:
            return starts
        starts[0] = True
        before, here = ids[:-1], ids[1:]
        starts[1:] |= self._ends[before]
        starts[1:] |= self._special[before] | self._special[here]
        last, first = self._last[before], self._first[here]
        starts[1:] |= (last != first) & (last != _UNKNOWN) & (first != _UNKNOWN)
        return starts

    def maskable(self, ids: Int[np.ndarray, " tokens"]) -> Bool[np.ndarray, " tokens"]:
        """Mark ordinary tokens, neither special nor unknown."""
        maskable: Bool[np.ndarray, " tokens"] = ~self._special[ids]
        return maskable


def _kind(settings: dict[str, Any], tokens: list[str]) -> Kind:
    model = settings["model"]
    if model.get("type") == "WordLevel":
        return "word"
    if model.get("type") == "WordPiece" or model.get("continuing_subword_prefix"):
        return "wordpiece"
    if model.get("end_of_word_suffix"):
        return "end-of-word"
    byte_level = sum(token.startswith(_BYTE_SPACES) for token in tokens)
    marked = sum(token.startswith(_SPACE_MARK) for token in tokens)
    if max(byte_level, marked) == 0:
        raise BackboneError(
            f"expected a tokenizer that marks words as WordPiece ('##'), byte-level BPE "
            f"('{_BYTE_SPACES[0]}') or SentencePiece ('{_SPACE_MARK}') does, got model "
            f"{model.get('type')}; use --objectives contrastive, which does not mask words"
        )
    return "byte-level" if byte_level >= marked else "sentencepiece"


def _marks(
    settings: dict[str, Any], tokens: list[str], kind: Kind
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return per token: begins a word, ends one, and its first and last character classes."""
    size = len(tokens)
    begins, ends = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    first, last = np.zeros(size, dtype=np.int8), np.zeros(size, dtype=np.int8)
    if kind == "word":
        begins[:] = True
    elif kind == "wordpiece":
        prefix = settings["model"].get("continuing_subword_prefix") or "##"
        begins[:] = [not token.startswith(prefix) for token in tokens]
    elif kind == "end-of-word":
        suffix = settings["model"]["end_of_word_suffix"]
        ends[:] = [token.endswith(suffix) for token in tokens]
    else:
        marks = _BYTE_SPACES if kind == "byte-level" else (_SPACE_MARK,)
        decoder = decoders.ByteLevel()
        for number, token in enumerate(tokens):
            begins[number] = token.startswith(marks)
            text = decoder.decode([token]) if kind == "byte-level" else token
            text = text.strip(_SPACE_MARK + " \n\t\r")
            if text:
                first[number], last[number] = _class(text[0]), _class(text[-1])
    return begins, ends, first, last


def _class(character: str) -> int:
    # Incomplete characters decode to the replacement character: their class is unknown.
    if character == "\ufffd":
        return _UNKNOWN
    return _LETTER if unicodedata.category(character)[0] in "LNM" else _SIGN
