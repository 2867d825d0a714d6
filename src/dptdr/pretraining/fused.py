"""Train a prompt without labels on a fused ranking of BM25 and the backbone."""

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax, logsumexp
from torch import Tensor

from dptdr.config.methods import DeepPromptConfig
from dptdr.config.optimisation import OptimisationConfig
from dptdr.config.pretraining import DEFAULT_TEMPERATURE, PretrainingConfig
from dptdr.config.training import TrainingConfig
from dptdr.errors import ConfigError, NoGain
from dptdr.io.atomic import sha256_file
from dptdr.io.beir import BeirFolder
from dptdr.io.store import PassageStore
from dptdr.model import Backbone, Encoder
from dptdr.pretraining.pseudo import PseudoQuery, pseudo_queries
from dptdr.records import Passage, Query, TrainingGroup
from dptdr.search.bm25 import Bm25Index
from dptdr.training.checkpoint_selection import training_limits
from dptdr.training.groups import DevSet
from dptdr.training.loop import Clock, ProgressCallback
from dptdr.training.objective import Batch, ContrastiveObjective
from dptdr.training.preparation import TrainingData
from dptdr.training.train import TrainingResult, train_task

_POOL = 50_000
"""Maximum size of the passage pool."""

_DEV_OTHERS = 4
"""Candidate passages per held-out passage in the dev corpus."""

_DEPTH = 100
"""Depth of each ranking; BM25 scores 0 beyond it."""

_CANDIDATES = 20
"""Top of the fused ranking from which each step draws."""

_MEASURE = "nDCG@10"

_NOISE = 0.01
"""A drop of held-out nDCG@10 that some hundred pseudo-queries cannot tell from noise."""

_INITIALISATION_TEXTS = 128


class _Known(NamedTuple):
    """Vectors of pool and queries, and BM25 scores."""

    passages: Float[np.ndarray, "pool dim"]
    queries: Float[np.ndarray, "queries dim"]
    bm25: list[dict[int, float]]


class PseudoGroups:
    """Pseudo-queries with their top fused candidates, encoded on first use.

    Args:
        pool: The passages.
        queries: Pseudo-queries from the pool.
        config: Training settings; only the maximum lengths are used.
        bm25_weight: Weight of BM25 in the fused ranking, relative to 1 for the backbone.
        anchor: Share of the backbone's own distribution in the targets.
    """

    def __init__(
        self,
        backbone: Backbone,
        pool: Sequence[Passage],
        queries: Sequence[PseudoQuery],
        config: TrainingConfig,
        *,
        bm25_weight: float,
        anchor: float,
    ) -> None:
        self.backbone = backbone
        self.pool = pool
        self.queries = queries
        self.config = config
        self.bm25_weight = bm25_weight
        self.anchor = anchor
        self._texts = [passage.content for passage in pool]
        # Replace each passage by the rest of its text.
        self._rows = {query.rest: query.row for query in queries}
        self._rows |= {text: row for row, text in enumerate(self._texts)}

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, item: int) -> TrainingGroup:
        query = self.queries[item]
        similar = np.argsort(-(self._known.passages @ self._known.queries[item]), kind="stable")
        near = {*similar[:_DEPTH].tolist(), *self._known.bm25[item]} - {query.row}
        rows = np.array(sorted(near), dtype=np.int64)
        fused, _ = self._scores(item, rows, temperature=1.0)
        best = rows[np.argsort(-fused, kind="stable")[:_CANDIDATES]]
        texts = tuple(self._texts[row] for row in best.tolist())
        return TrainingGroup(str(item), query.text, (query.rest,), texts)

    def targets(self, item: int, texts: Sequence[str], *, temperature: float) -> dict[int, float]:
        """Compute a pseudo-query's targets: log probabilities over a batch of texts.

        They mix two distributions: that of the fused ranking, where the query's own passage scores
        as high as the best one, and, with weight ``anchor``, the backbone's own.
        """
        rows = np.array([self._rows[text] for text in texts], dtype=np.int64)
        fused, bare = self._scores(item, rows, temperature=temperature)
        fused[rows == self.queries[item].row] = fused.max()
        parts = np.stack([log_softmax(fused), log_softmax(bare)])
        shares = np.array([[1.0 - self.anchor], [self.anchor]])
        return dict(enumerate(logsumexp(parts, axis=0, b=shares).tolist()))

    def _scores(
        self, item: int, rows: Int[np.ndarray, " rows"], *, temperature: float
    ) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
        """Return the logits of min-max fusion, on the backbone's scale, and the backbone's own."""
        bare = (self._known.passages[rows] @ self._known.queries[item]).astype(float) / temperature
        scores = self._known.bm25[item]
        lexical = np.array([scores.get(row, 0.0) for row in rows.tolist()])
        scale = float(np.ptp(bare)) / (float(lexical.max()) or 1.0) if len(rows) else 0.0
        return bare + self.bm25_weight * scale * lexical, bare

    @cached_property
    def _known(self) -> _Known:
        encoder = Encoder(
            self.backbone, limits=training_limits(self.backbone, self.config.identity())
        )
        queries = [Query(str(number), query.text) for number, query in enumerate(self.queries)]
        found = Bm25Index.build(self.pool).search_rows(queries, depth=_DEPTH)
        return _Known(
            encoder.encode_passages(self._texts),
            encoder.encode_queries([query.text for query in queries]),
            [dict(zip(rows.tolist(), scores.tolist(), strict=True)) for rows, scores in found],
        )


class FusedObjective(ContrastiveObjective):
    """Listwise distillation: each query learns a distribution over all passages in the batch.

    Source:
        Lin et al., arXiv 2010.11386. Differs: the teacher is a fused ranking.
    """

    def collect(self, share: Sequence[tuple[int, int]]) -> Batch:
        """Draw a batch and compute each query's targets over all of its passages."""
        batch = super().collect(share)
        assert isinstance(self.groups, PseudoGroups)
        rows = [
            row._replace(
                teacher=self.groups.targets(int(name), batch.passages, temperature=self.temperature)
            )
            for name, row in zip(batch.query_ids, batch.rows, strict=True)
        ]
        return batch._replace(rows=rows)


def pretrain_fused(
    folder: BeirFolder,
    out: Path,
    *,
    backbone: Backbone,
    config: PretrainingConfig,
    prompt: DeepPromptConfig,
    start_rows: Mapping[str, Tensor] | None = None,
    force: bool = False,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
    clock: Clock = time.monotonic,
) -> TrainingResult | None:
    """Train a prompt on the fused ranking of pseudo-queries; write it if it helps held-out ones.

    Each held-out pseudo-query searches for its source passage, with the backbone and with every
    checkpoint of the prompt.

    Raises:
        ConfigError: If the corpus yields too few pseudo-queries.
        NoGain: If the prompt is worse than the backbone on held-out queries, by more than noise,
            unless ``force``.
    """
    training = _training(config)
    data = _data(folder, backbone, config, training)

    def accept(best: Mapping[str, float], bare: Mapping[str, float]) -> None:
        found = f"on held-out pseudo-queries ({_MEASURE} {bare[_MEASURE]:.4f} -> "
        found += f"{best[_MEASURE]:.4f})"
        if best[_MEASURE] < bare[_MEASURE] - _NOISE and not force:
            raise NoGain(
                f"{out}: the prompt was not written, as it is worse than the backbone {found}; "
                "try other settings, or write it with --force"
            )
        if best[_MEASURE] <= bare[_MEASURE]:
            sys.stderr.write(f"the prompt is no better than the backbone {found}\n")

    return train_task(
        data,
        out,
        backbone=backbone,
        method_name="deep-prompt",
        method_config=prompt,
        config=training,
        overwrite=overwrite,
        start_rows=start_rows,
        progress=progress,
        clock=clock,
        objective=FusedObjective,
        accept=accept,
        work=out.with_name(f"{out.name}.pretraining"),
    )


def _training(config: PretrainingConfig) -> TrainingConfig:
    shared: dict[str, Any] = {
        field.name: getattr(config, field.name) for field in fields(OptimisationConfig)
    }
    return TrainingConfig(
        **shared,
        negatives_per_query=config.candidates_per_query,
        distillation="kl",
        distillation_weight=1.0,
        temperature=config.temperature or DEFAULT_TEMPERATURE,
        max_query_tokens=config.span_tokens,
        max_passage_tokens=config.span_tokens,
    )


def _data(
    folder: BeirFolder, backbone: Backbone, config: PretrainingConfig, training: TrainingConfig
) -> TrainingData:
    """Draw the pool, hold out passages, and create pseudo-queries from both parts."""
    store = PassageStore(folder)
    order = np.random.default_rng([33, config.seed]).permutation(len(store))
    pool = [store.at(row) for row in np.sort(order[:_POOL]).tolist()]
    places = np.random.default_rng([34, config.seed]).permutation(len(pool)).tolist()
    held_out = min(config.dev_documents, len(pool) // 10)
    dev_rows, train_rows = places[:held_out], places[held_out:]
    wanted = training.batch_size * training.with_steps(len(train_rows)).steps
    queries = pseudo_queries(pool, rows=train_rows, count=wanted, seed=config.seed)
    dev = pseudo_queries(pool, rows=dev_rows, count=held_out, seed=config.seed)
    if len(queries) < training.batch_size or not dev:
        raise ConfigError(
            f"{folder.path}: expected at least {training.batch_size} training pseudo-queries and "
            f"one held out, got {len(queries)} and {len(dev)} from {len(pool)} passages; use a "
            "smaller batch_size or a larger corpus"
        )
    rest = {query.row: query.rest for query in dev}
    others = sorted(train_rows[: _DEV_OTHERS * held_out])
    return TrainingData(
        groups=PseudoGroups(
            backbone,
            pool,
            queries,
            training,
            bm25_weight=config.bm25_weight,
            anchor=config.anchor,
        ),
        dev=DevSet(
            queries=[Query(str(number), query.text) for number, query in enumerate(dev)],
            passages=[
                *(Passage(pool[row].id, text) for row, text in rest.items()),
                *(pool[row] for row in others),
            ],
            qrels={str(number): {pool[query.row].id: 1} for number, query in enumerate(dev)},
        ),
        query_texts=[query.text for query in queries[:_INITIALISATION_TEXTS]],
        passage_texts=[query.rest for query in queries[:_INITIALISATION_TEXTS]],
        facts={
            "pretraining": "without labels: fused ranking",
            "data": folder.name,
            "corpus_sha256": sha256_file(folder.corpus_path),
            "pool": len(pool),
            "pseudo_queries": dict(Counter(query.kind for query in queries)),
            "held_out_pseudo_queries": dict(Counter(query.kind for query in dev)),
            "bm25_weight": config.bm25_weight,
            "anchor": config.anchor,
        },
    )
