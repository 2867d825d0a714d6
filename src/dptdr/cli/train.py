"""``dptdr train``: tune a task on a frozen backbone."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dptdr.config.methods import (
    FEW_QUERIES_OFFSET,
    METHOD_NAMES,
    DeepPromptConfig,
    MethodConfig,
    config_from,
)
from dptdr.config.training import DEFAULT_LEARNING_RATES, TrainingConfig
from dptdr.errors import ConfigError
from dptdr.io.atomic import write_json

if TYPE_CHECKING:
    from dptdr.training.train import TrainingResult

_DEFAULTS = TrainingConfig()
_PROMPT = DeepPromptConfig()
_RATES = ", ".join(f"{name} {rate:g}" for name, rate in DEFAULT_LEARNING_RATES.items())


def command(
    data: Annotated[Path, typer.Argument(help="BEIR folder; trains on qrels/train.tsv.")],
    out: Annotated[
        Path, typer.Option(help="Task bundle to write; checkpoints and log go to OUT.training.")
    ],
    backbone: Annotated[
        str, typer.Option(help="Frozen encoder: 'minilm', a folder, or a Hugging Face name.")
    ] = "minilm",
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHOD_NAMES)}.")] = "deep-prompt",
    steps: Annotated[
        int,
        typer.Option(
            help=f"Optimiser steps; 0 takes {_DEFAULTS.steps}, or as many as go 20 times through "
            "the training queries where that is less.",
        ),
    ] = 0,
    batch_size: Annotated[
        int, typer.Option(help="Queries per step; larger batches bring more in-batch negatives.")
    ] = _DEFAULTS.batch_size,
    learning_rate: Annotated[
        float, typer.Option(help=f"Peak learning rate; 0 takes the method's own ({_RATES}).")
    ] = _DEFAULTS.learning_rate,
    negatives: Annotated[
        Path | None,
        typer.Option(help="Mined negatives or training groups (JSON lines), see `dptdr mine`."),
    ] = None,
    negatives_per_query: Annotated[
        int, typer.Option(help="Mined negatives drawn per query and step.")
    ] = _DEFAULTS.negatives_per_query,
    positives_per_query: Annotated[
        int, typer.Option(help="Positives drawn per query and step, where there are several.")
    ] = _DEFAULTS.positives_per_query,
    prompt_length: Annotated[
        int, typer.Option(help="Prompt rows per layer (deep and shallow prompts).")
    ] = _PROMPT.prompt_length,
    ffn_length: Annotated[
        int | None,
        typer.Option(
            help="Feed-forward rows per layer of a deep prompt; 0 is the paper's prompt. Default: "
            "as many as fit into 2 % of the encoder's parameters, 80 at most."
        ),
    ] = None,
    ffn_learning_rate: Annotated[
        float, typer.Option(help="Peak learning rate of the feed-forward rows.")
    ] = _DEFAULTS.ffn_learning_rate,
    sharing: Annotated[
        str,
        typer.Option(
            help="tied: queries and passages share the prompt; untied: one each; query-only: "
            "passages are encoded by the bare backbone, so that tasks can share one index."
        ),
    ] = _PROMPT.sharing,
    attention: Annotated[
        str,
        typer.Option(
            help="joint: the prompt shares the tokens' softmax (prefix tuning, as in the paper); "
            "added: a softmax of its own, added to the output."
        ),
    ] = _PROMPT.attention,
    initialisation: Annotated[
        str,
        typer.Option(
            help="tokens: keys and values of the task's own texts; random; identity: exactly the "
            "backbone (needs attention 'added'); task: see --from-task."
        ),
    ] = _PROMPT.initialisation,
    start_offset: Annotated[
        float,
        typer.Option(
            help="How far the logits of a start from tokens lie below real tokens'; higher starts "
            f"nearer to the backbone. -1 takes {_PROMPT.start_offset:g}, or {FEW_QUERIES_OFFSET:g} "
            "where --steps 0 finds few queries."
        ),
    ] = -1.0,
    from_task: Annotated[
        Path | None, typer.Option(help="Start from the prompt of this task bundle.")
    ] = None,
    prompt_dropout: Annotated[
        float, typer.Option(help="Share of prompt numbers dropped in each training pass.")
    ] = _PROMPT.dropout,
    position: Annotated[
        str, typer.Option(help="unshifted, or shifted: token positions move by the prompt length.")
    ] = _PROMPT.position,
    reparametrisation: Annotated[
        int, typer.Option(help="Width of the MLP that makes the prompt while training; 0 is none.")
    ] = _PROMPT.reparametrisation,
    lora_rank: Annotated[int, typer.Option(help="Rank of LoRA's updates.")] = 8,
    lora_targets: Annotated[
        str,
        typer.Option(
            help="Linear layers that LoRA updates: attention (query and value), feed-forward, all."
        ),
    ] = "attention",
    temperature: Annotated[
        float, typer.Option(help="Scores are divided by it; lower is sharper.")
    ] = _DEFAULTS.temperature,
    score_scale: Annotated[
        float,
        typer.Option(
            help="Dot products are multiplied by it before --temperature: 1 for raw ones (the "
            "paper's); 0 measures it so that scores are of order 1."
        ),
    ] = _DEFAULTS.score_scale,
    warmup_share: Annotated[
        float, typer.Option(help="Share of the steps over which the learning rate rises.")
    ] = _DEFAULTS.warmup_share,
    schedule: Annotated[
        str, typer.Option(help="How the learning rate falls: linear, cosine or constant.")
    ] = _DEFAULTS.schedule,
    clip_norm: Annotated[
        float, typer.Option(help="Largest gradient norm; 0 never clips.")
    ] = _DEFAULTS.clip_norm,
    weight_decay: Annotated[
        float, typer.Option(help="AdamW's decoupled weight decay.")
    ] = _DEFAULTS.weight_decay,
    distillation: Annotated[
        str, typer.Option(help="none, kl or margin-mse; needs scores in --negatives.")
    ] = _DEFAULTS.distillation,
    distillation_weight: Annotated[
        float, typer.Option(help="Share of the distillation loss; the rest is contrastive.")
    ] = _DEFAULTS.distillation_weight,
    matryoshka: Annotated[
        list[int] | None, typer.Option(help="Shorter vector length to train as well; repeatable.")
    ] = None,
    max_query_tokens: Annotated[
        int, typer.Option(help="Longest query in tokens while training; 0: the backbone's limit.")
    ] = _DEFAULTS.max_query_tokens,
    max_passage_tokens: Annotated[
        int, typer.Option(help="Longest passage in tokens while training; 0: the backbone's limit.")
    ] = _DEFAULTS.max_passage_tokens,
    chunk_texts: Annotated[
        int, typer.Option(help="Texts per GradCache chunk; 0 keeps the whole batch in memory.")
    ] = _DEFAULTS.chunk_texts,
    checkpointing: Annotated[
        bool, typer.Option(help="Recompute activations in the backward pass: less memory, slower.")
    ] = _DEFAULTS.checkpointing,
    precision: Annotated[
        str, typer.Option(help="float32 or bfloat16 (forward pass; updates stay float32).")
    ] = _DEFAULTS.precision,
    evaluations: Annotated[
        int, typer.Option(help="Dev measures taken in a run.")
    ] = _DEFAULTS.evaluations,
    dev_queries: Annotated[int, typer.Option(help="Most dev queries.")] = _DEFAULTS.dev_queries,
    dev_passages: Annotated[
        int, typer.Option(help="Passages in the dev corpus.")
    ] = _DEFAULTS.dev_passages,
    dev_measure: Annotated[
        str, typer.Option(help="Measure that selects the checkpoint.")
    ] = _DEFAULTS.dev_measure,
    min_grade: Annotated[int, typer.Option(help="Least grade of a positive.")] = 1,
    seed: Annotated[int, typer.Option(help="Random seed.")] = _DEFAULTS.seed,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in OUT.training.")
    ] = False,
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, mps.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 0: torch's own choice.")] = 0,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Write TensorBoard files to this folder.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML report of the run to this file.")
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write what was reached to this file.")
    ] = None,
) -> None:
    """Tune a task on DATA and write its bundle; the backbone itself is not changed."""
    config = _training_config(
        {
            "steps": steps or _DEFAULTS.steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "ffn_learning_rate": ffn_learning_rate,
            "negatives_per_query": negatives_per_query,
            "positives_per_query": positives_per_query,
            "distillation_weight": distillation_weight,
            "temperature": temperature,
            "score_scale": score_scale,
            "warmup_share": warmup_share,
            "schedule": schedule,
            "clip_norm": clip_norm,
            "weight_decay": weight_decay,
            "distillation": distillation,
            "matryoshka": tuple(matryoshka or ()),
            "max_query_tokens": max_query_tokens,
            "max_passage_tokens": max_passage_tokens,
            "chunk_texts": chunk_texts,
            "checkpointing": checkpointing,
            "precision": precision,
            "evaluations": evaluations,
            "dev_queries": dev_queries,
            "dev_passages": dev_passages,
            "dev_measure": dev_measure,
            "seed": seed,
        }
    )
    by_method: dict[str, dict[str, Any]] = {
        "deep-prompt": {
            "prompt_length": prompt_length,
            "ffn_length": ffn_length,
            "sharing": sharing,
            "attention": attention,
            "initialisation": "task" if from_task else initialisation,
            "start_offset": _PROMPT.start_offset if start_offset == -1 else start_offset,
            "dropout": prompt_dropout,
            "position": position,
            "reparametrisation": reparametrisation,
        },
        "shallow-prompt": {"prompt_length": prompt_length, "sharing": sharing},
        "lora": {"rank": lora_rank, "alpha": 2 * lora_rank, "targets": lora_targets},
    }
    result = _train(
        data,
        out,
        config=config,
        fewer_steps=not steps,
        quiet=start_offset == -1,
        method=method,
        settings=by_method.get(method, {}),
        backbone=backbone,
        negatives=negatives,
        from_task=from_task,
        min_grade=min_grade,
        resume=resume,
        device=device,
        threads=threads,
        tensorboard=tensorboard,
    )
    if result is None:
        return
    _print_result(result, out)
    if report is not None:
        from dptdr.training.report import write_report

        write_report(result.run_folder, report)
        typer.echo(f"report: {report}")
    if json_out is not None:
        write_json(json_out, _summary(result, out))


def _training_config(settings: dict[str, Any]) -> TrainingConfig:
    choices = {
        "schedule": ("linear", "cosine", "constant"),
        "precision": ("float32", "bfloat16"),
        "distillation": ("none", "kl", "margin-mse"),
    }
    wrong = [
        f"{name}: expected one of {', '.join(allowed)}, got '{settings[name]}'"
        for name, allowed in choices.items()
        if settings[name] not in allowed
    ]
    if wrong:
        raise ConfigError("training settings: " + "; ".join(wrong))
    config = TrainingConfig(**settings)
    config.check()
    return config


def _train(
    data: Path,
    out: Path,
    *,
    config: TrainingConfig,
    fewer_steps: bool,
    quiet: bool,
    method: str,
    settings: dict[str, Any],
    backbone: str,
    negatives: Path | None,
    from_task: Path | None,
    min_grade: int,
    resume: bool,
    device: str,
    threads: int,
    tensorboard: Path | None,
) -> "TrainingResult | None":
    # Everything cheap is checked before torch is imported.
    name, method_config = config_from(method, settings)
    from dptdr.io.beir import BeirFolder

    folder = BeirFolder(data)
    folder.qrels("train")
    from dptdr.model import Backbone
    from dptdr.model.bundle import load_prompt_rows
    from dptdr.training.train import load_data, set_threads, train_task

    set_threads(threads)
    encoder = Backbone.load(backbone, device=device)
    rows = None if from_task is None else load_prompt_rows(from_task, backbone=encoder)
    prepared = load_data(folder, config, negatives=negatives, min_grade=min_grade)
    if fewer_steps:
        config, method_config = _for_few_queries(
            len(prepared.groups), config, method_config, quiet=quiet
        )
    from dptdr.io.progress import TrainingProgress

    with TrainingProgress(config.dev_measure) as watch:
        return train_task(
            prepared,
            out,
            backbone=encoder,
            method_name=name,
            method_config=method_config,
            config=config,
            resume=resume,
            start_rows=rows,
            watch=watch,
            tensorboard=tensorboard,
        )


def _for_few_queries(
    queries: int, config: TrainingConfig, method_config: MethodConfig, *, quiet: bool
) -> tuple[TrainingConfig, MethodConfig]:
    """Take fewer steps where there are few queries, and start a prompt near the backbone."""
    from dptdr.training.preparation import default_steps

    steps = default_steps(queries, config)
    if steps >= config.steps:
        return config, method_config
    said = f"{steps} steps: 20 times through {queries} training queries"
    if quiet and isinstance(method_config, DeepPromptConfig) and method_config.attention == "joint":
        method_config = dataclasses.replace(method_config, start_offset=FEW_QUERIES_OFFSET)
        said += f", from a start {FEW_QUERIES_OFFSET:g} below real tokens"
    typer.echo(f"{said} (--steps and --start-offset take other numbers)", err=True)
    return dataclasses.replace(config, steps=steps), method_config


def _summary(result: "TrainingResult", out: Path) -> dict[str, Any]:
    return {
        "task": str(out),
        "manifest": dataclasses.asdict(result.manifest),
        "dev": {str(step): measures for step, measures in result.history.items()},
        "bare_dev": result.bare,
        "best_step": result.best_step,
        "training_seconds": result.seconds,
    }


def _print_result(result: "TrainingResult", out: Path) -> None:
    manifest = result.manifest
    measure = str(manifest.training["dev_measure"])
    best, bare = result.history[result.best_step][measure], result.bare[measure]
    size = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    typer.echo(
        f"{out}: dev {measure} {best:.4f} (bare backbone {bare:.4f}), step {result.best_step}, "
        f"{manifest.trained_parameters:,} trained parameters, {size / 1e6:.2f} MB, "
        f"{result.seconds:.0f} s of training"
    )
    if best <= bare:
        typer.echo(
            "warning: not better than the bare backbone on dev; give it more steps, more data, or "
            "another learning rate"
        )
    typer.echo(f"next: dptdr evaluate DATA --task {out}")
