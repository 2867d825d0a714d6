"""The contrastive objective: from a step's number to gradients on what is trained."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from dptdr.config.training import TrainingConfig
from dptdr.model import Method, Side
from dptdr.model.encoder import length_sorted_batches
from dptdr.records import TrainingGroup
from dptdr.training import losses, sampling
from dptdr.training.distributed import World
from dptdr.training.gradcache import cached_backward, whole_backward
from dptdr.training.groups import Groups

# Whole-batch training encodes in pieces of about this many tokens, so that short texts are not
# padded to the longest of the batch; the gradient is the same.
_TOKENS_PER_PIECE = 4096


@dataclass(frozen=True, kw_only=True)
class StepStats:
    """What a step tells of itself.

    Args:
        loss: Mean loss over the global batch.
        texts: Texts encoded by this process.
        tokens: Their tokens, without padding.
        query_ids: Queries of this process's share, for error messages.
    """

    loss: float
    texts: int
    tokens: int
    query_ids: tuple[str, ...]


@runtime_checkable
class Objective(Protocol):
    """What the loop trains: it leaves gradients on the parameters, summed over processes."""

    def backward(self, step: int) -> StepStats:
        """Add the gradients of a step, a pure function of its number and the parameters."""
        ...


class Piece(NamedTuple):
    """Texts that are encoded together: their side, their places in the batch, their ids."""

    side: Side
    places: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]


class Batch(NamedTuple):
    """One process's share of a step; passages stand in it once each."""

    groups: list[TrainingGroup]
    queries: list[str]
    passages: list[str]
    positive: list[int]
    known: list[set[int]]
    teacher: list[dict[int, float]]


def text_hash(text: str) -> int:
    """Return 63 bits that stand for a text, to find copies across processes."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class ContrastiveObjective:
    """In-batch, mined and cross-device negatives, known positives and copies masked.

    Args:
        method: What is trained.
        groups: The training groups.
        config: Settings.
        world: The processes.
        score_scale: Factor that brings dot products to order 1.
    """

    def __init__(
        self,
        method: Method,
        groups: Groups,
        config: TrainingConfig,
        *,
        world: World | None = None,
        score_scale: float = 1.0,
    ) -> None:
        self.method = method
        self.groups = groups
        self.config = config
        self.world = world or World()
        self.temperature = config.temperature / score_scale
        self.lengths = losses.matryoshka_lengths(config.matryoshka, dim=method.backbone.dim)

    def backward(self, step: int) -> StepStats:
        """Add the gradients of one step to the parameters.

        Args:
            step: Step, counted from 0.

        Returns:
            The step's statistics; where the loss is not finite no gradient was added.
        """
        config = self.config
        pairs = sampling.batch_items(
            items=len(self.groups), batch_size=config.batch_size, step=step, seed=config.seed
        )
        share = sampling.split_evenly(pairs, rank=self.world.rank, world=self.world.size)
        batch = self.collect(share)
        pieces = self.pieces(batch)
        # Dropout must not depend on what ran before: resuming then needs no generator state.
        torch.manual_seed(_step_seed(config.seed, step=step, rank=self.world.rank))
        run = cached_backward if config.chunk_texts else whole_backward
        loss = run(self._encode, pieces, lambda vectors: self._loss(batch, pieces, vectors))
        total = self.world.sum_scalar(float(loss))
        self.world.sum_gradients(self.method.trained().values())
        return StepStats(
            loss=total,
            texts=len(batch.queries) + len(batch.passages),
            tokens=sum(len(row) for piece in pieces for row in piece.rows),
            query_ids=tuple(group.query_id for group in batch.groups),
        )

    def collect(self, share: Sequence[tuple[int, int]]) -> Batch:
        """Draw positives and negatives, and put every passage into the batch once."""
        config = self.config
        batch = Batch([], [], [], [], [], [])
        places: dict[str, int] = {}

        def place(text: str) -> int:
            if text not in places:
                places[text] = len(batch.passages)
                batch.passages.append(text)
            return places[text]

        for epoch, item in share:
            group = self.groups[item]
            draw = {"seed": config.seed, "epoch": epoch, "item": item}
            chosen = sampling.draw_positive(len(group.positives), **draw)
            positive = place(group.positives[chosen])
            teacher = {}
            if group.positive_scores:
                teacher[positive] = group.positive_scores[chosen]
            if group.negatives and config.negatives_per_query:
                for number in sampling.draw_negatives(
                    len(group.negatives), wanted=config.negatives_per_query, **draw
                ):
                    column = place(group.negatives[number])
                    if group.negative_scores:
                        teacher[column] = group.negative_scores[number]
            batch.groups.append(group)
            batch.queries.append(group.query)
            batch.positive.append(positive)
            batch.known.append({text_hash(text) for text in group.positives})
            batch.teacher.append(teacher)
        return batch

    def pieces(self, batch: Batch) -> list[Piece]:
        """Cut a batch into pieces of texts of similar length."""
        config, backbone = self.config, self.method.backbone
        pieces = []
        sides: tuple[tuple[Side, list[str], int], ...] = (
            ("query", batch.queries, config.max_query_tokens),
            ("passage", batch.passages, config.max_passage_tokens),
        )
        for side, texts, limit in sides:
            rows = backbone.tokenize(texts, side=side, max_tokens=limit or None)
            chunk = config.chunk_texts
            for places in length_sorted_batches(
                [len(row) for row in rows],
                token_budget=1 << 40 if chunk else _TOKENS_PER_PIECE,
                most_texts=chunk or len(rows),
            ):
                pieces.append(Piece(side, tuple(places), tuple(tuple(rows[i]) for i in places)))
        return pieces

    def _encode(self, piece: Piece) -> Tensor:
        tokens = self.method.backbone.pad(piece.rows)
        device = self.method.backbone.device.type
        enabled = self.config.precision == "bfloat16"
        with torch.autocast(device, dtype=torch.bfloat16, enabled=enabled):
            return self.method.vectors(tokens, side=piece.side).float()

    def _loss(self, batch: Batch, pieces: list[Piece], vectors: list[Tensor]) -> Tensor:
        """Return this process's part of the global mean loss."""
        sides: dict[Side, Tensor] = {
            side: _in_order(pieces, vectors, side=side) for side in ("query", "passage")
        }
        queries = sides["query"]
        passages = self.world.gather_rows(sides["passage"])
        masks = self._masks(batch, device=queries.device)
        # Each process sums over its own queries; gradients are added up over processes.
        share = 1.0 / self.config.batch_size
        normalise = self.method.backbone.pooling.normalise
        total = queries.new_zeros(())
        for length in self.lengths:
            if length == queries.shape[1]:
                scores = queries.float() @ passages.float().T
            else:
                scores = losses.similarity(
                    losses.cut_vectors(queries, length=length, normalise=normalise),
                    losses.cut_vectors(passages, length=length, normalise=normalise),
                    temperature=1.0,
                )
            total = total + self._terms(scores, masks).sum() * share
        return total / len(self.lengths)

    def _terms(self, scores: Tensor, masks: "Masks") -> Tensor:
        config = self.config
        scaled = scores / self.temperature
        terms = losses.contrastive_terms(scaled, positive=masks.positive, ignored=masks.ignored)
        if config.distillation == "none":
            return terms
        if config.distillation == "kl":
            taught = losses.kl_terms(scaled, teacher=masks.teacher, taught=masks.taught)
        else:
            taught = losses.margin_mse_terms(
                scores, positive=masks.positive, teacher=masks.teacher, taught=masks.taught
            )
        weight = config.distillation_weight
        return (1.0 - weight) * terms + weight * taught

    def _masks(self, batch: Batch, *, device: torch.device) -> "Masks":
        """Build the masks over the columns of all processes."""
        own = torch.tensor([text_hash(text) for text in batch.passages], dtype=torch.long)
        hashes = self.world.gather_rows(own.to(device)).cpu().numpy()
        offset = sum(self.world.gather_integers(len(batch.passages))[: self.world.rank])
        first: dict[int, int] = {}
        copies = np.zeros(len(hashes), dtype=bool)
        for column, value in enumerate(hashes.tolist()):
            copies[column] = value in first
            first.setdefault(value, column)
        shape = (len(batch.queries), len(hashes))
        positive, taught = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        ignored = np.zeros(shape, dtype=bool)
        ignored |= copies[None, :]
        teacher = np.zeros(shape, dtype=np.float32)
        for row, known in enumerate(batch.known):
            for value in known:
                if value in first:
                    ignored[row, first[value]] = True
            positive[row, first[int(hashes[offset + batch.positive[row]])]] = True
            for column, score in batch.teacher[row].items():
                place = first[int(hashes[offset + column])]
                teacher[row, place], taught[row, place] = score, True
        return Masks(
            *(torch.from_numpy(a).to(device) for a in (positive, ignored, teacher, taught))
        )


class Masks(NamedTuple):
    """Masks and teacher scores over ``[queries, passages]``."""

    positive: Tensor
    ignored: Tensor
    teacher: Tensor
    taught: Tensor


def _in_order(pieces: list[Piece], vectors: list[Tensor], *, side: Side) -> Tensor:
    """Return one side's vectors in the batch's order."""
    chosen = [(p, v) for p, v in zip(pieces, vectors, strict=True) if p.side == side]
    stacked = torch.cat([v for _, v in chosen])
    places = torch.tensor([place for p, _ in chosen for place in p.places], device=stacked.device)
    return stacked[torch.argsort(places)]


def _step_seed(seed: int, *, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([17, seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)
