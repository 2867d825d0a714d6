"""``dptdr export``: export a backbone, or a complete task, as an ONNX graph."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from dptdr.cli.common import Json, reject_unused_options, write_result
from dptdr.errors import ConfigError
from dptdr.io.outputs import try_outputs


def command(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    task: Annotated[
        Path | None,
        typer.Option(help="Task bundle: exports its backbone, and evaluates it with --data."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Encoder: `minilm`, a folder or a hub name.")
    ] = None,
    fold: Annotated[
        bool,
        typer.Option("--fold", help="Fold the task into the graph, to encode it without torch."),
    ] = False,
    int8: Annotated[
        bool, typer.Option(help="Also write an 8-bit graph; --data measures what it costs.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="BEIR folder to compare nDCG@10 of torch and the 8-bit graph on."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of --data.")] = "test",
    json: Json = None,
) -> None:
    """Export a backbone to ONNX, with the prompt as an input of the graph.

    The 8-bit graph serves all tasks of the backbone (`dptdr serve --onnx`). Graphs are compared
    with torch on random batches, and the 8-bit graph also by retrieval quality on --data. With
    --fold, the graph contains a single task.
    """
    reject_unused_options(
        context, without={"data": ("split",)}, beside={"fold": ("int8", "data", "split")}
    )
    try_outputs(json, inputs=[task, backbone, data])
    try_outputs(out, folders=True, inputs=[task, backbone, data])
    if fold:
        if task is None:
            raise ConfigError("--fold: expected --task, got none")
        _fold(task, out, backbone=backbone, json=json)
        return
    if int8 and data is None:
        raise ConfigError(
            "--int8 changes the vectors; add --data DATA to measure the cost in nDCG@10"
        )
    if data is not None and not int8:
        raise ConfigError("--data evaluates the 8-bit graph; add --int8 to create it")
    from dptdr.cli.common import load_encoder
    from dptdr.model.backbone import Backbone
    from dptdr.serving.onnx.exporting import export, refuse_other
    from dptdr.serving.onnx.measuring import check_measurable

    refuse_other(out)
    if data is not None:
        check_measurable(task=task, data=data, split=split)
    encoder = load_encoder(task, backbone, device="cpu")
    name = encoder.backbone.name
    # A task's method may have modified the backbone's weights.
    loaded = encoder.backbone if task is None else Backbone.load(name)
    measure = None if data is None else partial(_measured, name, task=task, data=data, split=split)
    found = export(loaded, out, int8=int8, measure=measure)
    write_result(json, found, said="\n".join(_lines(found, out)))


def _fold(task: Path, out: Path, *, backbone: str | None, json: Path | None) -> None:
    from dptdr.model.bundle import load_encoder
    from dptdr.serving.onnx.folding import export_task

    found = export_task(load_encoder(task=task, backbone=backbone), out)
    lines = [f"{out}: task '{found['task']}' on '{found['backbone']}'"]
    lines += [
        f"{side}: {facts['file']}, differs from torch by at most {facts['largest_difference']:.1e}"
        for side, facts in found["sides"].items()
    ]
    write_result(json, found, said="\n".join(lines))


def _measured(
    backbone: str, out: Path, *, task: Path | None, data: Path, split: str
) -> dict[str, Any]:
    """Measure nDCG@10 with torch and with the 8-bit graph, for the same task."""
    import tempfile

    from dptdr.model.backbone import Backbone
    from dptdr.serving.onnx.measuring import ndcg_of

    with tempfile.TemporaryDirectory(prefix="dptdr-export-") as folder:
        loaded = Backbone.load(backbone)
        found = ndcg_of(loaded, out, task=task, data=data, split=split, state=Path(folder))
    return {"ndcg_at_10": found, "measured_on": {"data": data.name, "split": split}}


def _lines(found: dict[str, Any], out: Path) -> list[str]:
    lines = [f"{out}: '{found['backbone']}' with prompts as inputs"]
    for precision, difference in found["largest_difference"].items():
        cosine = found["least_cosine"][precision]
        line = f"{precision}: differs from torch by at most {difference:.1e}, cosine {cosine:.4f}"
        measured = found.get("ndcg_at_10")
        if measured is not None and precision in measured:
            cost = measured["torch"] - measured[precision]
            line += f", nDCG@10 {measured[precision]:.4f} (torch {measured['torch']:.4f}, "
            line += f"cost {cost:+.4f})"
        lines.append(line)
    if "int8" in found["largest_difference"]:
        lines.append(f"serve it: dptdr serve TASK --onnx {out}")
    return lines
