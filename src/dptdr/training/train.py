"""From a data folder to a task bundle."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dptdr.config.methods import MethodConfig, MethodName, settings_of
from dptdr.config.training import TrainingConfig
from dptdr.data.beir import BeirFolder
from dptdr.errors import TrainingError
from dptdr.evaluation import evaluate
from dptdr.model import Backbone, Encoder, Limits, Method, MethodFactory, TaskManifest, save_task
from dptdr.records import Qrels, Query
from dptdr.search.retrieval import retrieve
from dptdr.training.checkpoints import RunFolder
from dptdr.training.distributed import World, joined
from dptdr.training.groups import (
    DevSet,
    Groups,
    QrelsGroups,
    draw_dev_ids,
    held_out_split,
    load_texts,
)
from dptdr.training.loop import Trainable, Watch, best_step, run_identity, train_loop
from dptdr.training.objective import ContrastiveObjective

_INITIALISATION_TEXTS = 128


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a run trains on and selects by.

    Args:
        groups: Training groups.
        dev: Dev queries and corpus.
        query_texts: Some queries, for initialisation.
        passage_texts: Some positives, for initialisation.
        facts: Counts and origin, for the bundle's card.
    """

    groups: Groups
    dev: DevSet
    query_texts: list[str]
    passage_texts: list[str]
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a run leaves.

    Args:
        manifest: The bundle's ``task.json``.
        history: Dev measures by step.
        bare: Dev measures of the bare backbone.
        best_step: The chosen checkpoint.
        seconds: Training time of this process, without evaluations.
        run_folder: Checkpoints and log.
    """

    manifest: TaskManifest
    history: dict[int, dict[str, float]]
    bare: dict[str, float]
    best_step: int
    seconds: float
    run_folder: Path


def load_data(
    folder: BeirFolder, config: TrainingConfig, *, groups: Groups | None = None, min_grade: int = 1
) -> TrainingData:
    """Read what a run needs of a data folder.

    Args:
        folder: The data.
        config: Sizes of the dev set, and the seed.
        groups: Groups with mined negatives that replace those of the train qrels.
        min_grade: Least grade of a positive.

    Returns:
        Groups and dev set.

    Raises:
        DataError: If a file is missing or broken.
        TrainingError: If there is nothing to train on.
    """
    train = folder.qrels("train")
    given = folder.has_split("dev")
    if given:
        dev = folder.qrels("dev")
    else:
        train, dev = held_out_split(train, most_queries=config.dev_queries, seed=config.seed)
    dev, corpus_ids = draw_dev_ids(
        dev,
        [passage.id for passage in folder.passages()],
        queries=config.dev_queries,
        passages=config.dev_passages,
        seed=config.seed,
    )
    positives = {
        p for judged in train.values() for p, grade in judged.items() if grade >= min_grade
    }
    queries, passages = load_texts(
        folder, query_ids={*train, *dev}, passage_ids=positives | corpus_ids
    )
    made = QrelsGroups(
        queries=queries,
        passages={p: passages[p].content for p in positives},
        qrels=_without_dev_texts(train, dev, queries),
        min_grade=min_grade,
    )

    query_texts, passage_texts = made.sample_texts(_INITIALISATION_TEXTS, seed=config.seed)
    return TrainingData(
        groups=made if groups is None else groups,
        dev=DevSet(
            queries=[Query(q, queries[q]) for q in sorted(dev)],
            passages=[passages[p] for p in sorted(corpus_ids)],
            qrels=dev,
        ),
        query_texts=query_texts,
        passage_texts=passage_texts,
        facts={
            "data": folder.name,
            "train_queries": len(made if groups is None else groups),
            "train_queries_without_positive": made.without_positive,
            "dev_queries": len(dev),
            "dev_passages": len(corpus_ids),
            "dev_split": "dev" if given else "held out from train",
        },
    )


def _without_dev_texts(train: Qrels, dev: Qrels, queries: Mapping[str, str]) -> Qrels:
    """Drop train queries whose very text is a dev query: they would tell the answers."""
    texts = {queries[q] for q in dev}
    return {q: judged for q, judged in train.items() if queries[q] not in texts}


def dev_measures(encoder: Encoder, dev: DevSet, *, measure: str) -> dict[str, float]:
    """Return the dev measures of an encoder."""
    run = retrieve(encoder, queries=dev.queries, passages=dev.passages, depth=100)
    names = list(dict.fromkeys([measure, "nDCG@10", "RR@10", "R@100"]))
    return dict(evaluate(run, dev.qrels, measures=names).measures)


def measured_scale(backbone: Backbone, texts: list[str]) -> float:
    """Return 1 over the mean squared vector length of some texts, 1 for normalised vectors."""
    if backbone.pooling.normalise:
        return 1.0
    vectors = Encoder(backbone).encode_passages(texts[:64])
    return float(1.0 / (vectors**2).sum(axis=1).mean())


def train_task(
    data: TrainingData,
    out: Path,
    *,
    backbone: Backbone,
    method_name: MethodName,
    method_config: MethodConfig,
    config: TrainingConfig,
    resume: bool = False,
    start_rows: Mapping[str, Tensor] | None = None,
    watch: Watch | None = None,
) -> TrainingResult:
    """Train one task, choose its best checkpoint, and write the bundle.

    Args:
        data: What to train on and to select by.
        out: The bundle's folder; the run's own files go to ``OUT.training`` beside it.
        backbone: The frozen encoder.
        method_name: Tuning method.
        method_config: Its settings.
        config: Training settings.
        resume: Go on with the run found in ``OUT.training``.
        start_rows: Another task's prompt rows to start from.
        watch: Told about every step.

    Returns:
        The result.

    Raises:
        ConfigError: If a setting is wrong.
        TrainingError: If the run cannot be resumed or the loss is not finite.
    """
    config.check()
    out = Path(out)
    folder = RunFolder(out.parent / f"{out.name}.training")
    with joined(backbone.device.type) as world:
        if world.is_first and not resume:
            _clear(folder)
        world.barrier()
        factory = MethodFactory(
            query_texts=data.query_texts, passage_texts=data.passage_texts, rows=start_rows
        )
        method = factory.build(method_name, backbone, method_config, seed=config.seed)
        if config.checkpointing:
            method.backbone.injection.enable_checkpointing()
        limits = _limits(backbone, config)
        bare = _bare_measures(backbone, data, config=config, folder=folder, world=world)
        tuned = Encoder(backbone, method=method, limits=limits, name=out.name)
        scale = config.score_scale or measured_scale(backbone, data.passage_texts)
        trainable = Trainable(method.trained(), config, rate=config.rate_for(method_name))
        identity = run_identity(
            config,
            method=method_name,
            method_settings=settings_of(method_config),
            backbone_fingerprint=backbone.fingerprint,
            world_size=world.size,
            data=data.facts,
        )
        method.module.train()
        if method_name == "full":
            method.backbone.model.eval()
        history = train_loop(
            ContrastiveObjective(method, data.groups, config, world=world, score_scale=scale),
            trainable,
            state=method.state,
            evaluate=lambda: dev_measures(tuned, data.dev, measure=config.dev_measure),
            folder=folder,
            identity=identity,
            world=world,
            keep_all=method_name != "full",
            watch=watch,
        )
        return _finish(
            method,
            out,
            folder=folder,
            history=history,
            bare=bare,
            world=world,
            config=config,
            facts={**data.facts, **_recipe(config, method_name), "score_scale": scale},
        )


def _clear(folder: RunFolder) -> None:
    """Start afresh: an old run's state must not be mixed with a new one's."""
    import shutil

    if folder.path.exists():
        shutil.rmtree(folder.path)


def _limits(backbone: Backbone, config: TrainingConfig) -> Limits:
    longest = backbone.pooling.max_tokens
    return Limits(
        max_query_tokens=min(config.max_query_tokens or longest, longest),
        max_passage_tokens=min(config.max_passage_tokens or longest, longest),
    )


def _bare_measures(
    backbone: Backbone,
    data: TrainingData,
    *,
    config: TrainingConfig,
    folder: RunFolder,
    world: World,
) -> dict[str, float]:
    """Measure the untuned backbone on dev: what tuning must beat."""
    if not world.is_first:
        return {}
    for record in folder.records():
        if record["kind"] == "bare":
            return {k: v for k, v in record.items() if k not in ("kind", "step")}
    bare = dev_measures(
        Encoder(backbone, limits=_limits(backbone, config)), data.dev, measure=config.dev_measure
    )
    folder.log({"kind": "bare", "step": 0, **bare})
    return bare


def _finish(
    method: Method,
    out: Path,
    *,
    folder: RunFolder,
    history: dict[int, dict[str, float]],
    bare: dict[str, float],
    world: World,
    config: TrainingConfig,
    facts: dict[str, Any],
) -> TrainingResult:
    """Load the best checkpoint and write the bundle."""
    best = best_step(history, measure=config.dev_measure)
    world.barrier()
    method.load(folder.load_checkpoint(best))
    # The bundle reads texts as long as the backbone can, whatever was cut while training.
    encoder = Encoder(method.backbone, method=method, name=out.name)
    measures: dict[str, Any] = {f"dev {name}": value for name, value in history[best].items()}
    measures |= {f"bare backbone dev {name}": value for name, value in bare.items()}
    if not world.is_first:
        raise SystemExit(0)
    manifest = save_task(
        out, encoder, name=out.name, training={**facts, "best_step": best}, measures=measures
    )
    seconds = sum(r["seconds"] for r in folder.records() if r["kind"] == "step")
    return TrainingResult(
        manifest=manifest,
        history=history,
        bare=bare,
        best_step=best,
        seconds=seconds,
        run_folder=folder.path,
    )


def _recipe(config: TrainingConfig, method: MethodName) -> dict[str, Any]:
    identity = run_identity(config)
    return {**identity, "learning_rate": config.rate_for(method), "method": method}


def select_again(run_folder: Path, *, measure: str) -> int:
    """Return which checkpoint of a finished run is best by another measure.

    Args:
        run_folder: ``TASK.training`` of the run.
        measure: A measure that was taken.

    Returns:
        The step.

    Raises:
        TrainingError: If the run took no such measure.
    """
    folder = RunFolder(run_folder)
    history = {
        int(r["step"]): {k: v for k, v in r.items() if isinstance(v, float)}
        for r in folder.records()
        if r["kind"] == "dev"
    }
    if not history:
        raise TrainingError(f"{run_folder}: expected a training run with dev measures, found none")
    return best_step(history, measure=measure)


def set_threads(threads: int) -> None:
    """Limit torch to a number of threads; 0 leaves its own choice."""
    if threads:
        torch.set_num_threads(threads)
