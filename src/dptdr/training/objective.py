"""The contrastive objective: gradients of the trainable parameters for a given step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dptdr.config.training import TrainingConfig
from dptdr.model import DeepPrompt, Method, Side
from dptdr.model.encoder import batch_sizes, length_sorted_batches
from dptdr.training import losses, sampling
from dptdr.training.distributed import ProcessGroup
from dptdr.training.frozen import FrozenLinears
from dptdr.training.gradcache import backward_at_once, backward_in_chunks
from dptdr.training.groups import Groups
from dptdr.training.masks import Example, InBatchCandidates, Masks, text_hash

# Batches are encoded in chunks of about this many tokens, so that short texts are not padded to the
# longest; gradients are unaffected. Small matrices are efficient on a CPU, but not on a GPU.
_TOKENS_PER_CHUNK = {"cpu": 512}
_TOKENS_PER_CHUNK_ELSEWHERE = 32768

# The loss of a large batch is computed in blocks of queries with about this many scores each.
# A block stores about 16 numbers per score, including the backward pass.
_SCORES_PER_BLOCK = {"cpu": 1 << 18}
_SCORES_PER_BLOCK_ELSEWHERE = 1 << 21


@dataclass(frozen=True, kw_only=True)
class StepStats:
    """Loss and counts of a step.

    Args:
        tokens: Number of tokens, without padding.
        query_ids: This rank's queries, for error messages; all ranks' if the loss is not finite.
    """

    loss: float
    texts: int
    tokens: int
    query_ids: tuple[str, ...]


@runtime_checkable
class Objective(Protocol):
    """Interface of what the loop trains."""

    def backward(self, step: int) -> StepStats:
        """Accumulate a step's gradients, a pure function of its number and the parameters."""
        ...


class MicroBatch(NamedTuple):
    """Texts encoded together: their side, batch positions and token ids."""

    side: Side
    places: tuple[int, ...]
    rows: list[list[int]]


class Batch(NamedTuple):
    """One rank's share of a step, without duplicate passages."""

    query_ids: list[str]
    queries: list[str]
    passages: list[str]
    rows: list[Example]


class ContrastiveObjective:
    """In-batch, mined and cross-rank negatives; known positives and duplicates are masked.

    Args:
        score_scale: Factor that scales dot products to order 1.
    """

    def __init__(
        self,
        method: Method,
        groups: Groups,
        config: TrainingConfig,
        *,
        world: ProcessGroup | None = None,
        score_scale: float = 1.0,
    ) -> None:
        self.method = method
        self.groups = groups
        self.config = config
        self.world = world or ProcessGroup()
        self.temperature = config.temperature / score_scale
        self.lengths = losses.matryoshka_lengths(config.matryoshka, dim=method.backbone.dim)
        kind = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        self.frozen = FrozenLinears(method.backbone.model, kind=kind)

    def backward(self, step: int) -> StepStats:
        """Accumulate the gradients of a step.

        Args:
            step: Number of the step, starting at 0.

        Returns:
            The step's statistics; no gradients are accumulated if the loss is not finite.
        """
        config = self.config
        items = self._items(step)
        share = sampling.split_evenly(items, rank=self.world.rank, world=self.world.size)
        batch = self.share_known(self.collect(share))
        chunks = self.micro_batches(batch)
        self._seed_dropout(step)
        with self.frozen.active():
            loss = self._run(batch, chunks)
        self.world.sum_gradients(self.method.trained().values())
        return StepStats(
            loss=loss,
            texts=len(batch.queries) + len(batch.passages),
            tokens=sum(len(row) for chunk in chunks for row in chunk.rows),
            query_ids=tuple(batch.query_ids)
            if math.isfinite(loss)
            else tuple(self.groups[item].query_id for _, item in items[: config.batch_size]),
        )

    def _items(self, step: int) -> list[tuple[int, int]]:
        config = self.config
        return sampling.batch_items(
            items=len(self.groups), batch_size=config.batch_size, step=step, seed=config.seed
        )

    def _seed_dropout(self, step: int) -> None:
        """Make dropout a function of the step, so that resuming needs no generator state."""
        seed = self.config.seed
        torch.manual_seed(_step_seed(seed, step=step, stream=1 + self.world.rank))
        # One mask per step, whatever the chunks, repeated passes and ranks.
        for number, module in enumerate(self.method.module.modules()):
            if isinstance(module, DeepPrompt):
                module.draw_dropout(_step_seed(seed, step=step, stream=-1 - number))

    def _run(self, batch: Batch, chunks: list[MicroBatch]) -> float:
        """Run forward and backward passes; return the loss over all ranks."""
        trained = [p for p in chunks if self.method.changes(p.side)]
        frozen = [p for p in chunks if not self.method.changes(p.side)]
        # With query-only prompts, encode passages once with the bare backbone, without a graph.
        with torch.no_grad():
            constants = [self._encode(chunk) for chunk in frozen]
        total = math.nan

        def proceed(loss: Tensor) -> bool:
            nonlocal total
            total = self.world.sum_scalar(float(loss.detach()))
            return math.isfinite(total)

        size = self.config.mini_batch_size
        run = (
            backward_in_chunks
            if size is not None and size < sum(len(p.rows) for p in trained)
            else backward_at_once
        )
        run(
            self._encode,
            trained,
            lambda vectors: self._loss(batch, trained + frozen, vectors + constants),
            proceed=proceed,
        )
        return total

    def collect(self, share: Sequence[tuple[int, int]]) -> Batch:
        """Draw positives and negatives, and add each passage to the batch once."""
        config = self.config
        batch = Batch([], [], [], [])
        places: dict[str, int] = {}

        def place(text: str) -> int:
            if text not in places:
                places[text] = len(batch.passages)
                batch.passages.append(text)
            return places[text]

        for epoch, item in share:
            group = self.groups[item]
            draw = {"seed": config.seed, "epoch": epoch, "item": item}
            teacher = {}
            positives = []
            for number in sampling.draw_positives(
                len(group.positives), wanted=config.positives_per_query, **draw
            ):
                positives.append(place(group.positives[number]))
                if group.positive_scores:
                    teacher[positives[-1]] = group.positive_scores[number]
            for number in sampling.draw_negatives(
                len(group.negatives), wanted=config.negatives_per_query, **draw
            ):
                text = group.negatives[number]
                if text in group.positives or text == group.own_passage:
                    continue
                column = place(text)
                if group.negative_scores:
                    teacher[column] = group.negative_scores[number]
            batch.query_ids.append(group.query_id)
            batch.queries.append(group.query)
            own = [group.own_passage] if group.own_passage else []
            known = frozenset(map(text_hash, [*group.positives, *own]))
            batch.rows.append(Example(positives, known, teacher))
        return batch

    def share_known(self, batch: Batch) -> Batch:
        """Share known positives between queries with the same text.

        Training files may repeat a question with different positives.
        """
        own = [text_hash(query) for query in batch.queries]
        pairs = [
            (query, value)
            for query, row in zip(own, batch.rows, strict=True)
            for value in sorted(row.known)
        ]
        gathered = self.world.all_gather(
            torch.tensor(pairs, dtype=torch.long, device=self.method.backbone.device)
        )
        known: dict[int, set[int]] = {}
        for query, value in gathered.tolist():
            known.setdefault(query, set()).add(value)
        rows = [
            row._replace(known=frozenset(known[query]))
            for query, row in zip(own, batch.rows, strict=True)
        ]
        return batch._replace(rows=rows)

    def micro_batches(self, batch: Batch) -> list[MicroBatch]:
        """Split a batch into chunks of texts with similar lengths."""
        config, backbone = self.config, self.method.backbone
        budget = _TOKENS_PER_CHUNK.get(backbone.device.type, _TOKENS_PER_CHUNK_ELSEWHERE)
        chunks = []
        sides: tuple[tuple[Side, list[str], int | None], ...] = (
            ("query", batch.queries, config.max_query_tokens),
            ("passage", batch.passages, config.max_passage_tokens),
        )
        for side, texts, limit in sides:
            rows = backbone.tokenize(texts, side=side, max_tokens=limit)
            for places in length_sorted_batches(
                [len(row) for row in rows],
                token_budget=budget,
                max_texts=config.mini_batch_size or len(rows),
                max_padding=batch_sizes(backbone.device).padding,
            ):
                chunks.append(MicroBatch(side, tuple(places), [rows[i] for i in places]))
        return chunks

    def _encode(self, chunk: MicroBatch) -> Tensor:
        tokens = self.method.backbone.pad(chunk.rows)
        device = self.method.backbone.device.type
        enabled = self.config.precision == "bfloat16"
        with torch.autocast(device, dtype=torch.bfloat16, enabled=enabled):
            return self.method.vectors(tokens, side=chunk.side).float()

    def _loss(self, batch: Batch, chunks: list[MicroBatch], vectors: list[Tensor]) -> Tensor:
        """Compute this rank's part of the global mean loss."""
        queries = _in_order(chunks, vectors, side="query")
        passages = self.world.all_gather(_in_order(chunks, vectors, side="passage"))
        columns = self._columns(batch, device=queries.device)
        scores = _SCORES_PER_BLOCK.get(queries.device.type, _SCORES_PER_BLOCK_ELSEWHERE)
        size = max(1, scores // len(columns))
        if size >= len(queries):
            return self._block_loss(queries, passages, columns, batch.rows)
        # Only one block's scores, masks and gradients are in memory at a time.
        parts = []
        for start in range(0, len(queries), size):
            rows = batch.rows[start : start + size]
            block = queries[start : start + size]
            part = checkpoint(self._block_loss, block, passages, columns, rows, use_reentrant=False)
            parts.append(part)
        return torch.stack(parts).sum()

    def _block_loss(
        self, queries: Tensor, passages: Tensor, columns: InBatchCandidates, rows: Sequence[Example]
    ) -> Tensor:
        """Compute some queries' part of the global mean loss."""
        masks = columns.masks(rows, device=queries.device)
        normalise = self.method.backbone.pooling.normalise
        total = queries.new_zeros(())
        for length in self.lengths:
            sides = (queries, passages)
            if length < queries.shape[1]:
                sides = (
                    losses.cut_vectors(queries, length=length, normalise=normalise),
                    losses.cut_vectors(passages, length=length, normalise=normalise),
                )
            scores = sides[0] @ sides[1].T
            total = total + self._terms(scores, masks).sum()
        # Each rank sums over its own queries; gradients are summed over ranks.
        return total / (self.config.batch_size * len(self.lengths))

    def _terms(self, scores: Tensor, masks: Masks) -> Tensor:
        config = self.config
        scaled = scores / self.temperature
        terms = losses.contrastive_terms(scaled, positive=masks.positive, ignored=masks.ignored)
        if config.distillation == "none":
            return terms
        if config.distillation == "kl":
            distilled = losses.kl_terms(scaled, teacher=masks.teacher, scored=masks.scored)
        else:
            distilled = losses.margin_mse_terms(
                scores, positive=masks.positive, teacher=masks.teacher, scored=masks.scored
            )
        weight = config.distillation_weight
        return (1.0 - weight) * terms + weight * distilled

    def _columns(self, batch: Batch, *, device: torch.device) -> InBatchCandidates:
        """Gather the passage hashes of all ranks."""
        own = torch.tensor([text_hash(text) for text in batch.passages], dtype=torch.long)
        hashes = self.world.all_gather(own.to(device)).tolist()
        counts = self.world.gather_integers(len(batch.passages))
        return InBatchCandidates(hashes, offset=sum(counts[: self.world.rank]))


def _in_order(chunks: list[MicroBatch], vectors: list[Tensor], *, side: Side) -> Tensor:
    """Return one side's vectors in batch order."""
    chosen = [(p, v) for p, v in zip(chunks, vectors, strict=True) if p.side == side]
    stacked = torch.cat([v for _, v in chosen])
    places = torch.tensor([place for p, _ in chosen for place in p.places], device=stacked.device)
    return stacked[torch.argsort(places)]


def _step_seed(seed: int, *, step: int, stream: int) -> int:
    # Seed sequences do not accept negative numbers.
    words = [17, seed, step, abs(stream), int(stream < 0)]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
