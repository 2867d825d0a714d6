"""Select a run's checkpoint and write it as a task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dptdr.config.methods import config_from
from dptdr.errors import TrainingError, WrongBackbone
from dptdr.evaluation import evaluate
from dptdr.model import Backbone, Encoder, Limits, Method, MethodFactory, TaskManifest, save_task
from dptdr.search.ranking import needed_depth
from dptdr.search.retrieve import retrieve
from dptdr.training.checkpoints import RunFolder
from dptdr.training.groups import DevSet
from dptdr.training.loop import selected_step


def dev_measures(encoder: Encoder, dev: DevSet, *, measure: str) -> dict[str, float]:
    """Evaluate an encoder on the dev set; the selection measure is the first key of the result."""
    names = list(dict.fromkeys([measure, "nDCG@10", "RR@10", "R@100"]))
    return _measures(encoder, dev, names=names)


def _measures(encoder: Encoder, dev: DevSet, *, names: Sequence[str]) -> dict[str, float]:
    run = retrieve(
        encoder,
        queries=dev.queries,
        passages=dev.passages,
        depth=needed_depth(names),
        keep_identical=dev.keep_identical,
    )
    return {
        name: float(value)
        for name, value in evaluate(run, dev.qrels, measures=names).measures.items()
    }


def select_again(run_folder: Path, *, measure: str) -> int:
    """Return the best kept checkpoint of a finished run by another measure.

    Args:
        run_folder: ``TASK.training`` of the run.
        measure: A measure computed during training or by :func:`measure_again`.

    Raises:
        TrainingError: If the run lacks the measure, or has kept no checkpoint.
    """
    folder = RunFolder(run_folder)
    history = folder.dev_history()
    kept = {step: history[step] for step in folder.checkpoint_steps() if step in history}
    if not kept:
        raise TrainingError(f"{run_folder}: no checkpoint has been kept")
    return selected_step(kept, measure=measure)


def measure_again(
    run_folder: Path, dev: DevSet, *, backbone: Backbone, measures: Sequence[str]
) -> dict[int, dict[str, float]]:
    """Compute additional dev measures for all kept checkpoints and append them to the log.

    Full fine-tuning and BitFit keep only their best checkpoint.

    Args:
        run_folder: ``TASK.training`` of the run.
        dev: Dev queries and corpus, such as ``load_data(...).dev`` of the run's data.

    Raises:
        TrainingError: If there is no finished run in the folder.
        WrongBackbone: If the run used another backbone.
    """
    folder = RunFolder(run_folder)
    history = folder.dev_history()
    identity = folder.identity()
    limits = training_limits(backbone, identity)
    for step in folder.checkpoint_steps():
        method = _rebuilt(identity, backbone, folder=folder, step=step)
        encoder = Encoder(backbone, method=method, limits=limits)
        taken = _measures(encoder, dev, names=measures)
        history[step] = history.get(step, {}) | taken
        folder.log({"kind": "dev", "step": step, **history[step]})
    return {step: history[step] for step in folder.checkpoint_steps()}


def write_bundle(
    run_folder: Path, out: Path, *, backbone: Backbone, step: int | None = None
) -> TaskManifest:
    """Write a task bundle from one of a run's checkpoints.

    Args:
        run_folder: ``TASK.training`` of the run.
        step: The checkpoint; the best one by the run's own measure if omitted.

    Raises:
        TrainingError: If there is no such run or checkpoint.
        WrongBackbone: If the run used another backbone.
    """
    folder = RunFolder(run_folder)
    identity = folder.identity()
    chosen = select_again(run_folder, measure=identity["dev_measure"]) if step is None else step
    method = _rebuilt(identity, backbone, folder=folder, step=chosen)
    return save_as_task(folder, out, method=method, step=chosen)


def save_as_task(folder: RunFolder, out: Path, *, method: Method, step: int) -> TaskManifest:
    """Write a task bundle from a method with a checkpoint's state.

    Args:
        method: The run's method, in its state at ``step``.
    """
    out = Path(out)
    # The bundle uses the backbone's full length, even if training truncated texts.
    encoder = Encoder(method.backbone, method=method, name=out.name)
    training = folder.identity()
    data = training.pop("data")
    for known_elsewhere in ("method_settings", "backbone_fingerprint"):
        training.pop(known_elsewhere)
    # The settings are limits, what was used has the same names.
    for limit in ("dev_queries", "dev_passages"):
        training[f"max_{limit}"] = training.pop(limit)
    measures = {f"dev {name}": v for name, v in folder.dev_history().get(step, {}).items()}
    measures |= {
        f"bare backbone dev {name}": value for name, value in bare_measures(folder).items()
    }
    for record in folder.records():
        if record["kind"] == "stored" and record["step"] == step:
            measures |= {f"stored dev {k}": v for k, v in record.items() if isinstance(v, float)}
    return save_task(
        out,
        encoder,
        name=out.name,
        training={**data, **training, "best_step": step},
        measures=measures,
        dtype=training.get("storage_dtype") or "float32",
    )


def bare_measures(folder: RunFolder) -> dict[str, float]:
    """Return the bare backbone's dev measures, empty if not yet computed."""
    for record in folder.records():
        if record["kind"] == "bare":
            return {k: v for k, v in record.items() if isinstance(v, float)}
    return {}


def training_limits(backbone: Backbone, settings: Mapping[str, Any]) -> Limits:
    """Return the maximum text lengths during training.

    Args:
        settings: ``max_query_tokens`` and ``max_passage_tokens``; ``None`` (0 in earlier versions)
            means the encoder's limit.
    """
    longest = backbone.pooling.max_tokens
    return Limits(
        max_query_tokens=min(settings["max_query_tokens"] or longest, longest),
        max_passage_tokens=min(settings["max_passage_tokens"] or longest, longest),
    )


def _rebuilt(
    identity: Mapping[str, Any], backbone: Backbone, *, folder: RunFolder, step: int
) -> Method:
    """Rebuild the run's method in its state at a checkpoint."""
    if identity["backbone_fingerprint"] != backbone.fingerprint:
        raise WrongBackbone(
            f"{folder.path}: expected the run's backbone with fingerprint "
            f"{identity['backbone_fingerprint']}, got '{backbone.name}' with {backbone.fingerprint}"
        )
    state = folder.load_checkpoint(step)
    name, config = config_from(identity["method"], identity["method_settings"])
    # The checkpoint's rows replace initialisation from texts.
    factory = MethodFactory(rows=state if name == "deep-prompt" else None)
    method = factory.build(name, backbone, config, seed=0)
    method.load(state)
    method.module.eval()
    return method
