"""``dptdr pretrain``: adapt an encoder, or a prompt alone, to a corpus without labels."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dptdr.config.methods import DeepPromptConfig, config_from
from dptdr.config.pretraining import (
    DEV_MEASURES,
    OBJECTIVE_NAMES,
    PretrainingConfig,
    pretraining_config,
)
from dptdr.config.training import DEFAULT_LEARNING_RATES
from dptdr.errors import ConfigError
from dptdr.io.atomic import write_json

if TYPE_CHECKING:
    from dptdr.pretraining.pretrain import PretrainingResult

_DEFAULTS = PretrainingConfig()
_PROMPT = DeepPromptConfig()


def command(
    data: Annotated[Path, typer.Argument(help="BEIR folder; only its corpus.jsonl is read.")],
    out: Annotated[
        Path,
        typer.Option(
            help="Backbone to write (a Hugging Face folder), or with --prompt-only the task "
            "bundle; checkpoints and log go to OUT.pretraining."
        ),
    ],
    backbone: Annotated[
        str, typer.Option(help="Encoder to start from: 'minilm', a folder, or a Hugging Face name.")
    ] = "minilm",
    prompt_only: Annotated[
        bool,
        typer.Option(
            "--prompt-only",
            help="Freeze the backbone and train a deep prompt alone: no second backbone to deploy.",
        ),
    ] = False,
    objectives: Annotated[
        str,
        typer.Option(
            help=f"Parts of the loss, some of {','.join(OBJECTIVE_NAMES)}. Default: all three for "
            "a backbone; for a prompt contrastive, and mlm where the encoder brings a head for it."
        ),
    ] = "",
    steps: Annotated[
        int, typer.Option(help="Optimiser steps, the warm-up of new heads not counted.")
    ] = _DEFAULTS.steps,
    batch_size: Annotated[
        int, typer.Option(help="Documents per step over all processes; each gives two spans.")
    ] = _DEFAULTS.batch_size,
    chunk_texts: Annotated[
        int,
        typer.Option(
            help="Spans per GradCache chunk: memory depends on it and not on --batch-size; 0 keeps "
            "the whole batch in memory."
        ),
    ] = _DEFAULTS.chunk_texts,
    span_tokens: Annotated[int, typer.Option(help="Longest span in tokens.")] = (
        _DEFAULTS.span_tokens
    ),
    least_span_tokens: Annotated[
        int,
        typer.Option(
            help="Documents that are shorter than twice this many tokens give one span, for "
            "masked words only."
        ),
    ] = _DEFAULTS.least_span_tokens,
    short_span_share: Annotated[
        float, typer.Option(help="Share of the spans that are cut to a random shorter length.")
    ] = _DEFAULTS.short_span_share,
    mask_share: Annotated[
        float, typer.Option(help="Share of the tokens that are masked, by whole words.")
    ] = _DEFAULTS.mask_share,
    skip_from: Annotated[
        int,
        typer.Option(help="Layer whose token states the Condenser head reads; 0: half of them."),
    ] = _DEFAULTS.skip_from,
    head_layers: Annotated[
        int, typer.Option(help="Transformer layers of the Condenser head.")
    ] = _DEFAULTS.head_layers,
    head_warmup_steps: Annotated[
        int,
        typer.Option(help="Steps in which new heads are trained alone; -1: a tenth of --steps."),
    ] = _DEFAULTS.head_warmup_steps,
    keep_head: Annotated[
        bool,
        typer.Option("--keep-head", help="Write the heads beside the backbone, to continue later."),
    ] = False,
    learning_rate: Annotated[
        float,
        typer.Option(
            help=f"Peak learning rate; 0: {DEFAULT_LEARNING_RATES['full']:g} for a backbone, "
            f"{DEFAULT_LEARNING_RATES['deep-prompt']:g} for a prompt."
        ),
    ] = _DEFAULTS.learning_rate,
    temperature: Annotated[
        float,
        typer.Option(
            help="Dot products of spans are divided by it; 0: 0.05 for encoders whose vectors have "
            "length 1, else 1 (raw dot products)."
        ),
    ] = _DEFAULTS.temperature,
    warmup_share: Annotated[
        float, typer.Option(help="Share of the steps over which the learning rate rises.")
    ] = _DEFAULTS.warmup_share,
    schedule: Annotated[
        str, typer.Option(help="How the learning rate falls: linear, cosine or constant.")
    ] = _DEFAULTS.schedule,
    weight_decay: Annotated[
        float, typer.Option(help="AdamW's decoupled weight decay.")
    ] = _DEFAULTS.weight_decay,
    clip_norm: Annotated[
        float, typer.Option(help="Largest gradient norm; 0 never clips.")
    ] = _DEFAULTS.clip_norm,
    precision: Annotated[
        str, typer.Option(help="float32 or bfloat16 (forward pass; updates stay float32).")
    ] = _DEFAULTS.precision,
    evaluations: Annotated[
        int, typer.Option(help="How often the measures on held-out documents are taken.")
    ] = _DEFAULTS.evaluations,
    dev_documents: Annotated[
        int, typer.Option(help="Documents held out, at most a tenth of the corpus.")
    ] = _DEFAULTS.dev_documents,
    dev_measure: Annotated[
        str, typer.Option(help=f"What chooses the checkpoint: one of {', '.join(DEV_MEASURES)}.")
    ] = _DEFAULTS.dev_measure,
    prompt_length: Annotated[
        int, typer.Option(help="With --prompt-only: prompt rows per layer.")
    ] = _PROMPT.prompt_length,
    sharing: Annotated[
        str,
        typer.Option(
            help="With --prompt-only: tied, untied or query-only; of two spans of a document the "
            "first is read as a query and the second as a passage."
        ),
    ] = _PROMPT.sharing,
    attention: Annotated[
        str, typer.Option(help="With --prompt-only: joint or added, as for `dptdr train`.")
    ] = _PROMPT.attention,
    initialisation: Annotated[
        str, typer.Option(help="With --prompt-only: tokens, random or identity.")
    ] = _PROMPT.initialisation,
    from_task: Annotated[
        Path | None, typer.Option(help="With --prompt-only: start from this task's prompt.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = _DEFAULTS.seed,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in OUT.pretraining.")
    ] = False,
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, mps.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 0: torch's own choice.")] = 0,
    readers: Annotated[
        int,
        typer.Option(
            min=0,
            help="Processes that read and mask coming batches meanwhile; a GPU waits without. Any "
            "number gives the same result.",
        ),
    ] = _DEFAULTS.readers,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write what was reached to this file.")
    ] = None,
) -> None:
    """Pretrain on the bare texts of DATA (masked words, Condenser, two spans of one document)."""
    config = pretraining_config(
        {
            "objectives": [name.strip() for name in objectives.split(",") if name.strip()],
            "steps": steps,
            "batch_size": batch_size,
            "chunk_texts": chunk_texts,
            "span_tokens": span_tokens,
            "least_span_tokens": least_span_tokens,
            "short_span_share": short_span_share,
            "mask_share": mask_share,
            "skip_from": skip_from,
            "head_layers": head_layers,
            "head_warmup_steps": head_warmup_steps,
            "learning_rate": learning_rate,
            "temperature": temperature,
            "warmup_share": warmup_share,
            "schedule": schedule,
            "weight_decay": weight_decay,
            "clip_norm": clip_norm,
            "precision": precision,
            "evaluations": evaluations,
            "dev_documents": dev_documents,
            "dev_measure": dev_measure,
            "seed": seed,
            "readers": readers,
        }
    )
    if prompt_only and keep_head:
        raise ConfigError("--keep-head keeps heads beside a backbone; --prompt-only writes none")
    prompt: dict[str, Any] = {
        "prompt_length": prompt_length,
        "sharing": sharing,
        "attention": attention,
        "initialisation": "task" if from_task else initialisation,
    }
    _refuse_prompt_settings(prompt, prompt_only=prompt_only)
    result = _pretrain(
        data,
        out,
        backbone=backbone,
        config=config,
        prompt=prompt if prompt_only else None,
        from_task=from_task,
        keep_head=keep_head,
        resume=resume,
        device=device,
        threads=threads,
    )
    if result is None:
        return
    _print_result(result, keep_head=keep_head)
    if json_out is not None:
        write_json(json_out, _summary(result))


def _refuse_prompt_settings(prompt: dict[str, Any], *, prompt_only: bool) -> None:
    """A setting that would have no effect is a mistake somewhere."""
    defaults = dataclasses.asdict(_PROMPT)
    given = [name for name, value in prompt.items() if value != defaults[name]]
    if given and not prompt_only:
        names = ", ".join(
            "from-task" if prompt[n] == "task" else n.replace("_", "-") for n in given
        )
        raise ConfigError(f"{names}: only with --prompt-only, which trains a prompt")


def _pretrain(
    data: Path,
    out: Path,
    *,
    backbone: str,
    config: PretrainingConfig,
    prompt: dict[str, Any] | None,
    from_task: Path | None,
    keep_head: bool,
    resume: bool,
    device: str,
    threads: int,
) -> "PretrainingResult | None":
    # Everything cheap is checked before torch is imported.
    settings = None if prompt is None else config_from("deep-prompt", prompt)[1]
    assert settings is None or isinstance(settings, DeepPromptConfig)
    from dptdr.io.beir import BeirFolder

    folder = BeirFolder(data)
    from dptdr.io.progress import TrainingProgress
    from dptdr.model import Backbone
    from dptdr.model.bundle import load_prompt_rows
    from dptdr.pretraining.pretrain import pretrain
    from dptdr.training.train import set_threads

    set_threads(threads)
    encoder = Backbone.load(backbone, device=device)
    rows = None if from_task is None else load_prompt_rows(from_task, backbone=encoder)
    with TrainingProgress(config.dev_measure) as watch:
        return pretrain(
            folder,
            out,
            backbone=encoder,
            config=config,
            prompt=settings,
            start_rows=rows,
            keep_head=keep_head,
            resume=resume,
            watch=watch,
            note=_note,
        )


def _note(line: str) -> None:
    typer.echo(line, err=True)


def _summary(result: "PretrainingResult") -> dict[str, Any]:
    first, last = result.losses
    return {
        "out": str(result.out),
        "prompt_only": result.prompt_only,
        "objectives": list(result.objectives),
        "temperature": result.temperature,
        "dev": {str(step): measures for step, measures in result.history.items()},
        "bare_dev": result.bare,
        "best_step": result.best_step,
        "first_losses": first,
        "last_losses": last,
        "mlm_head": result.mlm_head,
        "condenser_head": result.condenser_head,
        "head_warmup_losses": list(result.head_warmup),
        "documents_drawn": result.documents,
        "single_span_documents_drawn": result.single_span_documents,
        "training_seconds": result.seconds,
        "tokens": result.tokens,
        "tokens_per_second": result.tokens / max(1e-9, result.seconds),
        "backbone_fingerprint": result.fingerprint,
        "run_folder": str(result.run_folder),
    }


def _print_result(result: "PretrainingResult", *, keep_head: bool) -> None:
    typer.echo(_head_line(result))
    first, last = result.losses
    parts = ", ".join(f"{name} {first[name]:.3f} -> {last[name]:.3f}" for name in first)
    typer.echo(f"loss of the first and last step: {parts}")
    best = result.history[result.best_step]
    measures = ", ".join(
        f"{name} {result.bare[name]:.4f} -> {best[name]:.4f}" for name in DEV_MEASURES
    )
    typer.echo(f"held-out documents, before -> at step {result.best_step}: {measures}")
    if result.single_span_documents:
        use = "used for masked words only" if result.mlm_head is not None else "of no use here"
        typer.echo(
            f"{result.single_span_documents:,} of {result.documents:,} documents drawn gave fewer "
            f"than two spans: {use}"
        )
    if "contrastive" in result.objectives:
        typer.echo(f"span contrast: dot products over a temperature of {result.temperature:g}")
    typer.echo(
        f"{result.out}: {result.tokens:,} tokens in {result.seconds:.0f} s of training; "
        f"backbone fingerprint {result.fingerprint[:16]}"
    )
    if result.prompt_only:
        typer.echo(f"next: dptdr train DATA --from-task {result.out} --out TASK")
    else:
        if result.mlm_head is not None and not keep_head:
            typer.echo("the heads were dropped; --keep-head keeps them to continue")
        typer.echo(f"next: dptdr train DATA --backbone {result.out} --out TASK")


def _head_line(result: "PretrainingResult") -> str:
    if result.mlm_head is None:
        return "no words were masked, so no head was needed"
    origins = {
        "checkpoint": "the encoder's own",
        "kept": "kept from an earlier pretraining",
        "new": "none in the checkpoint, so a new one tied to the word embeddings",
    }
    line = f"masked-language head: {origins[result.mlm_head]}"
    if result.head_warmup:
        first, last = result.head_warmup
        line += f"; new heads were warmed up first, loss {first:.3f} -> {last:.3f}"
    return line
