"""``dptdr pretrain``: adapt an encoder, or only a prompt, to an unlabelled corpus."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dptdr.cli.common import Device, Json, Overwrite, Threads, write_result
from dptdr.cli.options import settings as options_of
from dptdr.config.methods import DeepPromptConfig, settings_of
from dptdr.config.pretraining import (
    DEV_MEASURES,
    FUSED,
    FUSED_MEASURE,
    PretrainingConfig,
    fused_defaults,
)
from dptdr.io.outputs import try_outputs

if TYPE_CHECKING:
    from dptdr.pretraining.pretrain import PretrainingResult

_FUSED_DEFAULTS = ", ".join(
    f"--{name.replace('_', '-')} {'none' if value is None else value}"
    for name, value in fused_defaults({}).items()
)


@options_of(
    {PretrainingConfig: "Pretraining", DeepPromptConfig: "With --prompt-only"},
    first=("max_steps", "num_epochs", "batch_size", "learning_rate", "seed"),
)
def command(
    data: Annotated[Path, typer.Argument(help="BEIR folder; only its corpus.jsonl is read.")],
    out: Annotated[
        Path,
        typer.Option(
            help="Backbone to write (a Hugging Face folder), or with --prompt-only the task "
            "bundle; checkpoints and log go to OUT.pretraining."
        ),
    ],
    settings: dict[str, Any],
    backbone: Annotated[
        str, typer.Option(help="Encoder to start from: 'minilm', a folder, or a Hugging Face name.")
    ] = "minilm",
    prompt_only: Annotated[
        bool,
        typer.Option(
            "--prompt-only",
            help="Freeze the backbone and train a deep prompt alone: no second backbone to deploy. "
            f"Defaults with --objectives fused: --prompt-length 0, {_FUSED_DEFAULTS}.",
        ),
    ] = False,
    keep_head: Annotated[
        bool,
        typer.Option("--keep-head", help="Write the heads beside the backbone, to continue later."),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="With --prompt-only: write the prompt even if it is worse than the backbone on "
            "held-out pseudo-queries (otherwise exit code 3).",
        ),
    ] = False,
    from_task: Annotated[
        Path | None, typer.Option(help="With --prompt-only: start from this task's prompt.")
    ] = None,
    overwrite: Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", hidden=True)] = False,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = None,
) -> None:
    """Pretrain on the unlabelled texts of DATA.

    An encoder is trained with masked language modelling, Condenser and span contrast; a prompt is
    trained on the fused ranking of BM25 and its backbone.
    Rerun the same command to resume an interrupted run.
    """
    try_outputs(json)
    import dptdr

    result = dptdr.pretrain(
        data,
        out=out,
        backbone=backbone,
        prompt_only=prompt_only,
        from_task=from_task,
        keep_head=keep_head,
        force=force,
        overwrite=overwrite,
        device=device,
        threads=threads,
        **settings,
    )
    if result is not None:
        write_result(json, _summary(result), said="\n".join(_messages(result, keep_head=keep_head)))


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


def _messages(result: "PretrainingResult", *, keep_head: bool) -> list[str]:
    fused = result.objectives == FUSED
    lines = [f"{result.documents:,} pseudo-queries" if fused else _head_line(result)]
    first, last = result.losses
    parts = ", ".join(f"{name} {first[name]:.3f} -> {last[name]:.3f}" for name in first)
    lines.append(f"loss of the first and last step: {parts}")
    best = result.history[result.best_step]
    names = (FUSED_MEASURE, "RR@10") if fused else DEV_MEASURES
    measures = ", ".join(f"{name} {result.bare[name]:.4f} -> {best[name]:.4f}" for name in names)
    lines.append(f"held-out documents, before -> at step {result.best_step}: {measures}")
    if result.single_span_documents:
        use = "used for masked words only" if result.mlm_head is not None else "of no use here"
        lines.append(
            f"{result.single_span_documents:,} of {result.documents:,} documents drawn gave fewer "
            f"than two spans: {use}"
        )
    if "contrastive" in result.objectives:
        lines.append(f"span contrast: dot products over a temperature of {result.temperature:g}")
    lines.append(
        f"{result.out}: {result.tokens:,} tokens in {result.seconds:.0f} s of training; "
        f"backbone fingerprint {result.fingerprint[:16]}"
    )
    if result.prompt_only:
        lines.append(
            f"next: dptdr train DATA --from-task {result.out} {_lengths(result)}--out TASK"
        )
    else:
        if result.mlm_head is not None and not keep_head:
            lines.append("the heads were dropped; --keep-head keeps them to continue")
        lines.append(f"next: dptdr train DATA --backbone {result.out} --out TASK")
    return lines


def _lengths(result: "PretrainingResult") -> str:
    """Return the training options for the same prompt lengths."""
    from dptdr.model.bundle import read_manifest

    own, usual = read_manifest(result.out).settings, settings_of(DeepPromptConfig())
    names = ("prompt_length", "ffn_length")
    return "".join(f"--{n.replace('_', '-')} {own[n]} " for n in names if own[n] != usual[n])


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
