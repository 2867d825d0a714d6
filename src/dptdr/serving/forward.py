"""Forward pass over token-id rows, each with the prompt of its own task."""

import contextlib
import threading
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dptdr.errors import DptdrError, UnsupportedBackbone
from dptdr.model import packing
from dptdr.model.backbone import Backbone, Side
from dptdr.model.initialisation import initial_feed_forward_rows
from dptdr.model.kernels import order_weights
from dptdr.model.packing import PackedPass, PromptRows
from dptdr.model.prompt_rows import AttentionRows, FeedForwardRows
from dptdr.model.unpadded import why_not_packable

Layout = Literal["packed", "padded"]

TOLERANCE = 1e-5
"""Tolerance between batched and separately computed vectors, relative to the largest norm."""

_LAYOUT_TOLERANCE = 2e-5
_PROBE_TOKENS = 300
"""Longest probe text: exceeds the local attention windows of some encoders."""


class BatchRow(NamedTuple):
    """A text in a batch: its token ids and prompt."""

    ids: list[int]
    prompt: PromptRows | None = None


class Forward:
    """Computes batches whose rows differ in task, side and length.

    Args:
        backbone: A backbone owned by the server. Its attention is replaced by a packed version if
            a test batch gives the same vectors as padding.
        layout: Force a layout; by default packed if possible.
        ordered: Replace linear layers by ordered ones if that does not change the results.

    Raises:
        DptdrError: If ``packed`` is forced and the backbone cannot be packed.
    """

    def __init__(
        self, backbone: Backbone, *, layout: Layout | None = None, ordered: bool = True
    ) -> None:
        self.backbone = backbone
        self.tolerance = TOLERANCE
        self.ordered = ordered and order_weights(backbone)
        self._pass: PackedPass | None = None
        self._tokenizer_lock = threading.Lock()
        self.layout: Layout = "padded"
        reason = "requested" if layout == "padded" else self._try_packing()
        if layout == "packed" and reason:
            raise DptdrError(f"backbone '{backbone.name}' cannot be packed: {reason}")
        self.reason = reason

    def tokenize(
        self,
        texts: Sequence[str],
        *,
        side: Side,
        max_tokens: int | None = None,
        keep_end: bool = False,
    ) -> list[list[int]]:
        """Tokenize texts; thread-safe.

        Args:
            side: Determines the prefix.
            max_tokens: Truncation limit.
            keep_end: Truncate long texts at the start instead of the end.
        """
        # Truncation is tokenizer state, so only one thread may use a tokenizer at a time.
        with self._tokenizer_lock:
            before = self.backbone.tokenizer.truncation_side
            self.backbone.tokenizer.truncation_side = "left" if keep_end else before
            try:
                return self.backbone.tokenize(texts, side=side, max_tokens=max_tokens)
            finally:
                self.backbone.tokenizer.truncation_side = before

    def tokens(self, texts: Sequence[str], *, side: Side, special: bool = True) -> list[Any]:
        """Return one untruncated ``tokenizers.Encoding`` per text."""
        pooling = self.backbone.pooling
        prefix = pooling.query_prefix if side == "query" else pooling.passage_prefix
        with self._tokenizer_lock:
            encoded = self.backbone.tokenizer(
                [prefix + text for text in texts], add_special_tokens=special, verbose=False
            )
        found: list[Any] = encoded.encodings
        return found

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str] | None:
        """Decode token ids to texts, or return ``None`` if the ids do not round-trip.

        Args:
            rows: Token ids of each text, with or without special tokens.
        """
        tokenizer = self.backbone.tokenizer
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        plain = [[i for i in row if i not in special] for row in rows]
        if any(not 0 <= i < len(tokenizer) for row in plain for i in row):
            return None
        with self._tokenizer_lock:
            texts = [str(tokenizer.decode(row)) for row in plain]
            bare, framed = (
                tokenizer(texts, add_special_tokens=add, verbose=False)["input_ids"]
                for add in (False, True)
            )
        same = all(list(row) in forms for row, *forms in zip(rows, bare, framed, strict=True))
        return texts if same else None

    def vectors(
        self, rows: Sequence[BatchRow], *, merge: bool | None = None
    ) -> Float[Tensor, "texts dim"]:
        """Compute one float32 vector per row, in order.

        Args:
            rows: Rows with at least one token each.
            merge: Passed to :func:`dptdr.model.packing.plan`.
        """
        with torch.inference_mode():
            if self.layout == "packed":
                return self._packed(rows, merge=merge)
            return self._padded(rows)

    def single(self, row: BatchRow) -> Float[Tensor, " dim"]:
        """Compute one row with the model package, as the reference for all checks."""
        prompt = row.prompt
        with torch.inference_mode():
            return self.backbone.vectors(
                self.backbone.pad([row.ids]),
                attention=None if prompt is None else prompt.attention(),
                feed_forward=None if prompt is None else prompt.feed_forward,
                position_shift=0 if prompt is None else prompt.shift,
            )[0]

    def _packed(
        self, rows: Sequence[BatchRow], *, merge: bool | None
    ) -> Float[Tensor, "texts dim"]:
        order = sorted(range(len(rows)), key=lambda i: (id(rows[i].prompt), len(rows[i].ids)))
        chosen = [rows[i] for i in order]
        ids, prompts = [row.ids for row in chosen], [row.prompt for row in chosen]
        assert self._pass is not None
        made = self._pass.vectors(ids, prompts, merge=merge)
        vectors = torch.empty_like(made)
        vectors[torch.tensor(order, device=made.device)] = made
        return vectors

    def _padded(self, rows: Sequence[BatchRow]) -> Float[Tensor, "texts dim"]:
        vectors = torch.empty(len(rows), self.backbone.dim, device=self.backbone.device)
        shifts = [0 if row.prompt is None else row.prompt.shift for row in rows]
        for shift in sorted(set(shifts)):
            places = [place for place, own in enumerate(shifts) if own == shift]
            chosen = [rows[place] for place in places]
            vectors[torch.tensor(places, device=vectors.device)] = self.backbone.vectors(
                self.backbone.pad([row.ids for row in chosen]),
                attention=gather([row.prompt for row in chosen]),
                feed_forward=gather_feed_forward([row.prompt for row in chosen]),
                position_shift=shift,
            )
        return vectors

    def _try_packing(self) -> str:
        """Switch to the packed layout if vectors match padding; return the reason if not."""
        backbone = self.backbone
        reason = why_not_packable(backbone)
        if reason:
            return reason
        try:
            self._pass = PackedPass(backbone)
        except DptdrError as error:
            return str(error)
        packing.register()
        backbone.model.set_attn_implementation(packing.NAME)
        rows = probe_rows(backbone)
        try:
            self.layout = "packed"
            made = self.vectors(rows)
            expected = torch.stack([self.single(row) for row in rows])
        except (DptdrError, RuntimeError, TypeError, ValueError, IndexError) as error:
            self.layout = "padded"
            return f"a packed pass failed with {type(error).__name__}: {error}"
        scale = max(1.0, float(expected.abs().max()))
        difference = float((made - expected).abs().max()) / scale
        if not difference <= _LAYOUT_TOLERANCE:
            self.layout = "padded"
            return f"packed and padded vectors differ by {difference:.1e}"
        return ""


def gather(prompts: Sequence[PromptRows | None]) -> AttentionRows | None:
    """Collect the attention rows of a padded batch: shared, or one set per text with a mask."""
    first = prompts[0]
    if all(prompt is first for prompt in prompts):
        return None if first is None else first.attention()
    longest = max(0 if p is None else p.prompt_length for p in prompts)
    if not longest:
        return None
    some = next(p for p in prompts if p is not None)
    layers, _, heads, head_dim = some.keys.shape
    keys = some.keys.new_zeros(layers, len(prompts), longest, heads, head_dim)
    values = torch.zeros_like(keys)
    visible = torch.zeros(len(prompts), longest, dtype=torch.bool, device=keys.device)
    for text, prompt in enumerate(prompts):
        if prompt is not None:
            keys[:, text, : prompt.prompt_length] = prompt.keys
            values[:, text, : prompt.prompt_length] = prompt.values
            visible[text, : prompt.prompt_length] = True
    return AttentionRows(keys.transpose(2, 3), values.transpose(2, 3), visible=visible)


def gather_feed_forward(prompts: Sequence[PromptRows | None]) -> FeedForwardRows | None:
    """Collect the feed-forward rows of a padded batch: shared, or one set per text."""
    first = prompts[0]
    if all(prompt is first for prompt in prompts):
        return None if first is None else first.feed_forward
    taken = [None if prompt is None else prompt.feed_forward for prompt in prompts]
    some = next((rows for rows in taken if rows is not None), None)
    if some is None:
        return None
    layers, _, _, dim = some.keys.shape
    longest = max(rows.keys.shape[2] for rows in taken if rows is not None)
    keys = some.keys.new_zeros(layers, len(taken), longest, dim)
    biases, values = keys.new_zeros(layers, len(taken), longest), torch.zeros_like(keys)
    for text, rows in enumerate(taken):
        if rows is not None:
            length = rows.keys.shape[2]
            keys[:, text, :length] = rows.keys[:, 0]
            biases[:, text, :length] = rows.biases[:, 0]
            values[:, text, :length] = rows.values[:, 0]
    return FeedForwardRows(keys, biases, values)


def probe_rows(backbone: Backbone) -> list[BatchRow]:
    """Create rows with various lengths and prompts, to compare both layouts."""
    generator = torch.Generator().manual_seed(0)
    geometry = backbone.geometry
    prompts: list[Any] = [None]
    kind = next(backbone.model.parameters()).dtype
    for length in (3, 5):
        shape = (2, geometry.layers, length, geometry.heads, geometry.head_dim)
        keys, values = torch.randn(shape, generator=generator).to(backbone.device, kind)
        prompts.append(PromptRows(keys, values))
    # If supported, the first task also gets feed-forward rows.
    with contextlib.suppress(UnsupportedBackbone):
        units = initial_feed_forward_rows(backbone, ffn_length=2, seed=0)
        units = FeedForwardRows(*(x.to(backbone.device, kind) for x in units))
        prompts[1] = prompts[1]._replace(feed_forward=units._replace(values=units.keys))
    longest = min(_PROBE_TOKENS, backbone.pooling.max_tokens)
    vocabulary = int(backbone.model.get_input_embeddings().weight.shape[0])
    rows = []
    for number, length in enumerate((7, 2, longest, 7, 7, 11)):
        ids = torch.randint(min(5, vocabulary - 1), vocabulary, (length,), generator=generator)
        rows.append(BatchRow(ids.tolist(), prompts[number % 3]))
    return rows
