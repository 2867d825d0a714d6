"""Sample documents of the corpus and two masked spans of each."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from dptdr.config.pretraining import PretrainingConfig
from dptdr.errors import BackboneError, ConfigError
from dptdr.io.beir import BeirFolder
from dptdr.io.store import PassageStore
from dptdr.model import Backbone, Pooling, Side
from dptdr.pretraining.masking import Masked, mask_words
from dptdr.pretraining.spans import cut_spans, distinct_spans, draw_spans, shorten
from dptdr.pretraining.word_boundaries import Words
from dptdr.records import Passage
from dptdr.training.masks import text_hash

# Independent random streams start their seed sequence with different numbers.
_HELD_OUT, TRAIN, DEV, WARMUP = 21, 22, 23, 24

_LOOK_AT = 4096

SIDES: tuple[Side, Side] = ("query", "passage")
"""A document's first span is treated as a query, its second as a passage."""


class Text(NamedTuple):
    """A span with special tokens and masks.

    Args:
        side: Determines prompt and prefix.
        ids: Masked tokens, including special ones.
        places: Indices in ``ids`` of tokens to predict.
        targets: The original tokens at these indices.
    """

    side: Side
    ids: list[int]
    places: list[int]
    targets: list[int]


class SampledDocument(NamedTuple):
    """A document's texts in a step: two, or one if the document is short.

    ``owner`` identifies the document's text, so that spans of duplicates are not used as negatives.
    """

    id: str
    owner: int
    texts: list[Text]


class Frame(NamedTuple):
    """Special tokens and the side's prefix around each text."""

    before: list[int]
    after: list[int]


class Documents:
    """Training and held-out documents of a data folder, with texts left on disk.

    Memory per document is 48 bytes, regardless of its length.

    Args:
        folder: The data; only its corpus is read.
        config: Sizes, shares and seed.

    Raises:
        ConfigError: If the corpus is smaller than a batch.
        DataError: If a line of the corpus is malformed.
    """

    def __init__(self, folder: BeirFolder, config: PretrainingConfig) -> None:
        self.store = PassageStore(folder)
        count = len(self.store)
        held_out = min(config.dev_documents, count // 10)
        if held_out < 2 or count - held_out < config.batch_size:
            raise ConfigError(
                f"{folder.path}: the corpus has {count:,} documents, {held_out:,} of them held "
                f"out; need at least 2 held-out documents and {config.batch_size} (batch_size) for "
                "training; use a smaller batch or a larger corpus"
            )
        order = np.random.default_rng([_HELD_OUT, config.seed]).permutation(count)
        self.dev: Int[np.ndarray, " documents"] = np.sort(order[:held_out])
        self.train: Int[np.ndarray, " documents"] = np.sort(order[held_out:])

    def passages(self, rows: Sequence[int]) -> list[Passage]:
        """Read the documents in some rows."""
        return [self.store.at(row) for row in rows]


class TextFormat(NamedTuple):
    """The parts of an encoder needed for reading texts in worker processes, without weights."""

    name: str
    tokenizer: Any
    pooling: Pooling
    vocabulary: int

    @classmethod
    def of(cls, backbone: Backbone) -> "TextFormat":
        """Extract these parts from an encoder."""
        vocabulary = int(backbone.model.get_input_embeddings().weight.shape[0])
        return cls(backbone.name, backbone.tokenizer, backbone.pooling, vocabulary)


class Reader:
    """Turns documents into masked spans; the result depends only on (seed, step, document).

    Args:
        backbone: Provides tokenizer, prefixes and maximum length.
        masks: Whether to mask tokens; if false, spans are left intact.

    Raises:
        BackboneError: If the tokenizer has no mask token, or its word boundaries are unknown.
        ConfigError: If a span exceeds the encoder's maximum length.
    """

    def __init__(
        self, backbone: Backbone, documents: Documents, config: PretrainingConfig, *, masks: bool
    ) -> None:
        self.text_format = TextFormat.of(backbone)
        self.documents = documents
        self.config = config
        self.masks = masks
        self.words = _words(self.text_format, needed=masks)
        self.frames = {side: _frame(self.text_format, side) for side in SIDES}
        frame = self.frames[SIDES[0]]
        self.empty = [*frame.before, *frame.after] or [self.text_format.tokenizer.eos_token_id or 0]
        around = max(len(frame.before) + len(frame.after) for frame in self.frames.values())
        room = backbone.pooling.max_tokens - around
        if config.span_tokens > room:
            raise ConfigError(
                f"span_tokens: expected at most {room} ('{backbone.name}' accepts "
                f"{backbone.pooling.max_tokens} tokens, including {around} for special tokens and "
                f"prefix), got {config.span_tokens}"
            )

    def read(self, rows: Sequence[int], *, step: int, stream: int = TRAIN) -> list[SampledDocument]:
        """Read the texts of some documents in a step.

        Args:
            rows: Rows of the documents in the corpus.
            step: With seed and row, determines spans and masks.
            stream: Random stream for this use of the documents.
        """
        passages = self.documents.passages(rows)
        encoded = self.text_format.tokenizer(
            [passage.content for passage in passages],
            add_special_tokens=False,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        return [
            SampledDocument(
                passage.id,
                text_hash(passage.content),
                self._texts(ids, step=step, row=row, stream=stream),
            )
            for row, passage, ids in zip(rows, passages, encoded, strict=True)
        ]

    def _texts(self, tokens: list[int], *, step: int, row: int, stream: int) -> list[Text]:
        config = self.config
        ids = np.asarray(tokens, dtype=np.int64)
        starts = np.ones(len(ids), dtype=bool) if self.words is None else self.words.starts(ids)
        if len(ids) == 0:
            # A document without words stays in the batch, but contributes nothing.
            return [Text(SIDES[0], self.empty, [], [])]
        spans = cut_spans(
            starts, span_tokens=config.span_tokens, min_span_tokens=config.min_span_tokens
        )
        generator = np.random.default_rng([stream, config.seed, step, row])
        texts = []
        drawn = draw_spans(distinct_spans(spans, ids), generator=generator)
        for side, span in zip(SIDES, drawn, strict=False):
            begin, stop = shorten(
                span,
                starts=starts,
                share=config.short_span_ratio,
                min_span_tokens=config.min_span_tokens,
                generator=generator,
            )
            masked = self._masked(ids[begin:stop], starts[begin:stop], generator=generator)
            texts.append(self._framed(masked, side=side))
        return texts

    def _masked(
        self, ids: np.ndarray, starts: np.ndarray, *, generator: np.random.Generator
    ) -> Masked:
        if self.words is None or not self.masks:
            none = np.zeros(0, dtype=ids.dtype)
            return Masked(ids, none, none.copy())
        starts = starts.copy()
        starts[:1] = True
        return mask_words(
            ids,
            starts=starts,
            maskable=self.words.maskable(ids),
            share=self.config.mlm_probability,
            mask_id=int(self.text_format.tokenizer.mask_token_id),
            ordinary=self.words.ordinary,
            generator=generator,
        )

    def _framed(self, masked: Masked, *, side: Side) -> Text:
        frame = self.frames[side]
        return Text(
            side=side,
            ids=[*frame.before, *masked.ids.tolist(), *frame.after],
            places=(masked.places + len(frame.before)).tolist(),
            targets=masked.targets.tolist(),
        )

    @property
    def looked_at(self) -> int:
        """Maximum number of documents checked by :meth:`has_pairs`."""
        return min(_LOOK_AT, len(self.documents.train))

    def has_pairs(self) -> bool:
        """Check whether any of the first training documents has two different spans."""
        rows = self.documents.train[: self.looked_at]
        for start in range(0, len(rows), 64):
            chosen = [int(row) for row in rows[start : start + 64]]
            if any(len(document.texts) == 2 for document in self.read(chosen, step=0)):
                return True
        return False


def _words(text_format: TextFormat, *, needed: bool) -> Words | None:
    """Return the tokenizer's word rules, or ``None`` if spans are not masked."""
    if needed and text_format.tokenizer.mask_token_id is None:
        raise BackboneError(
            f"backbone '{text_format.name}': objectives mlm and condenser need a tokenizer with a "
            "mask token; use --objectives contrastive, or another encoder"
        )
    try:
        return Words(text_format.tokenizer, vocabulary=text_format.vocabulary)
    except BackboneError:
        if needed:
            raise
        return None


def _frame(text_format: TextFormat, side: Side) -> Frame:
    """Find the tokens that the tokenizer adds around a text."""
    prefix = {
        "query": text_format.pooling.query_prefix,
        "passage": text_format.pooling.passage_prefix,
    }
    tokenizer = text_format.tokenizer
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    at = next(n for n in range(len(full)) if full[n : n + len(bare)] == bare)
    words = tokenizer(prefix[side], add_special_tokens=False)["input_ids"] if prefix[side] else []
    return Frame([*full[:at], *words], full[at + len(bare) :])
