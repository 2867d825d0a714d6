"""HTML report of a training run: learning curves and the prompt's effect."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dptdr.errors import TrainingError
from dptdr.io.atomic import atomic_file
from dptdr.training.checkpoints import RunFolder
from dptdr.training.loop import selected_step

_SIDES = ("query", "passage")
_UNHEEDED, _OVERWHELMING = 0.01, 0.9


def write_report(run_folder: Path, out: Path) -> None:
    """Write a training run's report as one self-contained HTML page, atomically.

    Args:
        run_folder: ``TASK.training`` of the run, which may still be in progress.

    Raises:
        TrainingError: If there is no run in the folder, or it has not completed a step.
    """
    folder = RunFolder(run_folder)
    identity, records = folder.identity(), folder.records()
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_kind.setdefault(record["kind"], []).append(record)
    if "step" not in by_kind:
        raise TrainingError(
            f"{run_folder}: the run has not completed a step yet, so there is nothing to plot"
        )
    chosen = _chosen_step(by_kind.get("dev", []), identity)
    title = f"Training of {folder.path.name.removesuffix('.training')}"
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f"<body><h1>{html.escape(title)}</h1>",
        _summary(identity, by_kind, chosen=chosen),
        "<h2>Curves</h2>",
        _image(_curves(by_kind, identity, chosen=chosen), "loss, dev measures, gradient norms"),
    ]
    norms = _prompt_norms(folder)
    if norms:
        parts += ["<h2>Norms of the prompt's rows</h2>", f"<p>{_NORMS_NOTE}</p>"]
        parts.append(_image(_norm_figure(norms), "mean norm of key and value rows by layer"))
    mass = [record for record in by_kind.get("health", []) if "attention_mass" in record]
    if mass:
        parts += ["<h2>Attention to the prompt</h2>", f"<p>{_MASS_NOTE}</p>"]
        parts.append(_image(_mass_figure(mass), "share of attention by layer, head"))
        parts += [f"<p>{html.escape(line)}</p>" for line in remarks(mass[-1])]
    shares = [record for record in by_kind.get("health", []) if "feed_forward_share" in record]
    if shares:
        parts += ["<h2>Feed-forward rows</h2>", f"<p>{_SHARE_NOTE}</p>"]
        parts.append(_share_table(shares))
    parts += ["<h2>Settings</h2>", _settings_table(identity)]
    with atomic_file(Path(out)) as handle:
        handle.write("\n".join([*parts, "</body></html>\n"]).encode("utf-8"))


def _chosen_step(dev: Sequence[Mapping[str, Any]], identity: Mapping[str, Any]) -> int | None:
    measure = identity["dev_measure"]
    history = {int(r["step"]): {measure: float(r[measure])} for r in dev}
    return selected_step(history, measure=measure) if history else None


def _summary(identity: Mapping[str, Any], by_kind: Mapping[str, Any], *, chosen: int | None) -> str:
    measure = identity["dev_measure"]
    steps = by_kind["step"]
    seconds = [record["seconds"] for record in steps]
    rows = [
        ("method", identity["method"]),
        ("steps", f"{steps[-1]['step']:,} of {identity.get('max_steps', identity.get('steps')):,}"),
        ("seconds per step, median", f"{float(np.median(seconds)):.3f}"),
        ("loss, last tenth", f"{np.mean([r['loss'] for r in _last_tenth(steps)]):.4f}"),
    ]
    if by_kind.get("bare"):
        rows.append((f"dev {measure}, bare backbone", f"{by_kind['bare'][0][measure]:.4f}"))
    if chosen is not None:
        best = next(r for r in by_kind["dev"] if r["step"] == chosen)
        rows.append((f"dev {measure}, step {chosen} (chosen)", f"{best[measure]:.4f}"))
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in rows
    )
    return f"<table>{cells}</table>"


def _last_tenth(steps: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return steps[-max(1, len(steps) // 10) :]


def _settings_table(identity: Mapping[str, Any]) -> str:
    flat = {k: v for k, v in identity.items() if not isinstance(v, dict)}
    for group in ("method_settings", "data"):
        flat |= {f"{group}: {k}": v for k, v in identity.get(group, {}).items()}
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in sorted(flat.items())
    )
    return f"<table>{cells}</table>"


def _curves(by_kind: Mapping[str, Any], identity: Mapping[str, Any], *, chosen: int | None) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.2), layout="constrained")
    loss, dev, gradient = figure.subplots(1, 3)
    steps = by_kind["step"]
    numbers = [record["step"] for record in steps]
    losses = [record["loss"] for record in steps]
    loss.plot(numbers, losses, color="tab:blue", alpha=0.3, linewidth=1, label="each step")
    window = max(1, len(steps) // 20)
    loss.plot(numbers, _running_mean(losses, window=window), color="tab:blue", label="smoothed")
    loss.set(title="loss", xlabel="step")
    loss.set_ylim(bottom=0.0)
    loss.legend(loc="upper right", frameon=False)
    _plot_dev(dev, by_kind, identity, chosen=chosen)
    _plot_gradients(
        gradient,
        steps,
        clip=float(identity.get("max_grad_norm", identity.get("clip_norm"))),
        window=window,
    )
    for axes in (loss, dev, gradient):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _plot_dev(
    axes: Any, by_kind: Mapping[str, Any], identity: Mapping[str, Any], *, chosen: int | None
) -> None:
    dev = by_kind.get("dev", [])
    names = [n for n, v in dev[-1].items() if isinstance(v, float)] if dev else []
    # The selection measure comes first and is drawn boldest.
    names.sort(key=lambda name: (name != identity["dev_measure"], name))
    for number, name in enumerate(names):
        taken = [record for record in dev if name in record]
        style = {"color": f"C{number}", "linewidth": 2.2 if number == 0 else 1.2}
        axes.plot([r["step"] for r in taken], [r[name] for r in taken], "o-", label=name, **style)
        if by_kind.get("bare") and name in by_kind["bare"][0]:
            axes.axhline(by_kind["bare"][0][name], linestyle="--", **style, alpha=0.6)
    if chosen is not None:
        axes.axvline(chosen, color="0.4", linestyle=":", label="chosen step")
    axes.set(title="dev measures (dashed: bare backbone)", xlabel="step")
    if names:
        axes.legend(loc="lower right", framealpha=0.9, edgecolor="none")


def _plot_gradients(
    axes: Any, steps: Sequence[Mapping[str, Any]], *, clip: float, window: int
) -> None:
    numbers = [record["step"] for record in steps]
    layers = max(len(record["layer_gradient_norms"]) for record in steps)
    for layer in range(layers):
        norms = [record["layer_gradient_norms"][layer] for record in steps]
        label = f"layer {layer}" if layer in (0, layers - 1) else None
        axes.plot(
            numbers,
            _running_mean(norms, window=window),
            color=_layer_colour(layer, layers=layers),
            linewidth=1.2,
            label=label,
        )
    norms = [record["gradient_norm"] for record in steps]
    axes.plot(numbers, _running_mean(norms, window=window), color="black", label="all")
    if clip:
        axes.axhline(clip, color="tab:red", linestyle=":", label="clipped above")
    axes.set(title="gradient norm by layer, before clipping", xlabel="step", yscale="log")
    axes.legend(loc="upper right", framealpha=0.9, edgecolor="none", fontsize="small")


def _layer_colour(layer: int, *, layers: int) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](0.05 + 0.85 * layer / max(1, layers - 1))


def _running_mean(values: Sequence[float], *, window: int) -> list[float]:
    return [float(np.mean(values[max(0, i - window + 1) : i + 1])) for i in range(len(values))]


def _prompt_norms(folder: RunFolder) -> dict[tuple[str, int], list[np.ndarray]]:
    """Return the mean norm of key and value rows in each layer, by prompt and step."""
    norms: dict[tuple[str, int], list[np.ndarray]] = {}
    for step in folder.checkpoint_steps():
        for name, rows in folder.load_checkpoint(step).items():
            if rows.dim() == 5 and rows.shape[1] == 2:
                lengths = rows.float().norm(dim=-1).mean(dim=(2, 3))
                norms[name, step] = [lengths[:, 0].numpy(), lengths[:, 1].numpy()]
            elif name.endswith((".ffn_keys", ".ffn_values")):
                prompt, kind = name.rsplit(".ffn_", 1)
                own = rows.float().norm(dim=-1).mean(dim=1).numpy()
                pair = norms.setdefault((f"{prompt} feed-forward", step), [own, own])
                pair[kind == "values"] = own
    return norms


def _share_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Build a table with one row per side and step, and one column per layer."""
    sides = records[0]["feed_forward_share"]
    layers = range(len(next(iter(sides.values()))))
    rows = [
        f"<tr><td>{html.escape(side)}, step {record['step']}</td>"
        + "".join(f"<td>{share:.1%}</td>" for share in record["feed_forward_share"][side])
        + "</tr>"
        for record in records
        for side in record["feed_forward_share"]
    ]
    head = "".join(f"<th>layer {layer}</th>" for layer in layers)
    return f"<table><tr><th>side</th>{head}</tr>{''.join(rows)}</table>"


def _norm_figure(norms: Mapping[tuple[str, int], list[np.ndarray]]) -> Any:
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for name, _ in norms))
    figure = Figure(figsize=(11, 3.6 * len(names)), layout="constrained")
    panels: Any = figure.subplots(len(names), 2, squeeze=False)
    for row, name in enumerate(names):
        steps = sorted(step for other, step in norms if other == name)
        layers = len(norms[name, steps[0]][0])
        for column, kind in enumerate(("keys", "values")):
            axes = panels[row, column]
            for layer in range(layers):
                lengths = [float(norms[name, step][column][layer]) for step in steps]
                colour = _layer_colour(layer, layers=layers)
                axes.plot(steps, lengths, "o-", color=colour, label=f"layer {layer}")
            axes.set(title=f"{name} prompt, {kind}", xlabel="step")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set_ylim(bottom=0.0)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        if layers <= 12:
            beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
            panels[row, 1].legend(frameon=False, fontsize="small", **beside)
    return figure


def _mass_figure(health: Sequence[Mapping[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    shown = [health[0]] if len(health) == 1 else [health[0], health[-1]]
    sides = [side for side in _SIDES if side in shown[-1]["attention_mass"]]
    first = np.asarray(shown[-1]["attention_mass"][sides[0]])
    width = max(3.2, 0.42 * first.shape[1] + 1.4)
    height = max(2.6, 0.34 * first.shape[0] + 1.2)
    size = (width * len(shown) + 1.0, height * len(sides))
    figure = Figure(figsize=size, layout="constrained")
    panels: Any = figure.subplots(len(sides), len(shown), squeeze=False)
    highest = max(np.max(r["attention_mass"][side]) for r in shown for side in sides)
    picture: Any = None
    for row, side in enumerate(sides):
        for column, record in enumerate(shown):
            axes = panels[row, column]
            mass = np.asarray(record["attention_mass"][side])
            picture = axes.imshow(mass, vmin=0.0, vmax=highest, cmap="magma", aspect="auto")
            when = "start" if record["step"] == 0 else f"step {record['step']}"
            axes.set(title=f"{side}, {when}", xlabel="head", ylabel="layer")
            axes.set_xticks(range(mass.shape[1]))
            axes.set_yticks(range(mass.shape[0]))
            if mass.size <= 200:
                _write_shares(axes, mass, highest=float(highest))
    figure.colorbar(picture, ax=panels.ravel().tolist(), label="share of attention", shrink=0.8)
    return figure


def _write_shares(axes: Any, mass: np.ndarray, *, highest: float) -> None:
    for layer in range(mass.shape[0]):
        for head in range(mass.shape[1]):
            dark = mass[layer, head] < 0.6 * highest
            axes.text(
                head,
                layer,
                f"{100 * mass[layer, head]:.0f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else "black",
            )


def remarks(health: Mapping[str, Any]) -> list[str]:
    """Describe what a prompt's attention shares suggest.

    Args:
        health: A log record with ``attention_mass``.

    Returns:
        One line per finding, or one stating that there is none.
    """
    lines = []
    for side, layers in health["attention_mass"].items():
        mass = np.asarray(layers)
        unheeded = [layer for layer in range(len(mass)) if mass[layer].max() < _UNHEEDED]
        overwhelmed = [layer for layer in range(len(mass)) if mass[layer].min() > _OVERWHELMING]
        if unheeded:
            lines.append(
                f"{side}: every head of layers {_numbers(unheeded)} gives the prompt less than "
                f"{_UNHEEDED:.0%}; these rows have almost no effect."
            )
        if overwhelmed:
            lines.append(
                f"{side}: every head of layers {_numbers(overwhelmed)} gives the prompt more than "
                f"{_OVERWHELMING:.0%}; little attention is left for the text."
            )
        lines.append(f"{side}: {mass.mean():.0%} of all attention goes to the prompt.")
    return lines


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _image(figure: Any, description: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"<img alt='{html.escape(description)}' src='data:image/png;base64,{data}'>"


_SHARE_NOTE = (
    "Share of each feed-forward layer's output contributed by the prompt's rows: the norm of "
    "their contribution, divided by that plus the norm of the layer's own output, averaged over "
    "tokens. It starts at 0."
)

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;"
    "color:#222}img{max-width:100%}table{border-collapse:collapse}"
    "th,td{text-align:left;padding:.15rem .8rem .15rem 0;border-bottom:1px solid #ddd;"
    "font-weight:normal}th{color:#666}"
)
_NORMS_NOTE = (
    "Mean over rows and heads at each checkpoint. Norms that keep growing, or grow in a single "
    "layer, indicate that the learning rate is too high."
)
_MASS_NOTE = (
    "Percentage of each head's attention that goes to the prompt, averaged over the tokens of "
    "some texts."
)
