"""Export a whole task as ONNX graphs: backbone and rows in one.

::

    FOLDER/model.onnx       queries and passages, where they meet the same prompt
    FOLDER/query.onnx       else one graph
    FOLDER/passage.onnx     for each side
    FOLDER/tokenizer.json   for the package tokenizers
    FOLDER/export.json      per side: file, prefix, maximum tokens, difference from torch

Inputs: ``input_ids`` and ``attention_mask`` ``[texts, tokens]``. Output: ``vectors``
``[texts, dim]``.
"""

from pathlib import Path
from typing import Any, get_args

from jaxtyping import Float, Int
from torch import Tensor, nn

from dptdr.errors import BackboneError
from dptdr.io.atomic import atomic_folder, write_json
from dptdr.model.backbone import Side, Tokens
from dptdr.model.encoder import Encoder
from dptdr.serving.onnx.exporting import (
    FORMAT_VERSION,
    FP32_TOLERANCE,
    MANIFEST,
    check_installed,
    compare,
    write_graph,
)

FORMAT = "dptdr-onnx-task"


class _SideGraph(nn.Module):
    """One side of a task, to trace."""

    def __init__(self, encoder: Encoder, *, side: Side) -> None:
        super().__init__()
        self.model = encoder.backbone.model
        self._encoder = encoder
        self._side: Side = side

    def forward(
        self,
        input_ids: Int[Tensor, "texts tokens"],
        attention_mask: Int[Tensor, "texts tokens"],
    ) -> Float[Tensor, "texts dim"]:
        """Return one vector per text."""
        tokens = Tokens(input_ids, attention_mask)
        method = self._encoder.method
        if method is None or not method.changes(self._side):
            return self._encoder.backbone.vectors(tokens)
        return method.vectors(tokens, side=self._side)


def export_task(encoder: Encoder, out: Path) -> dict[str, Any]:
    """Write a task as ONNX graphs, checked against torch; return its ``export.json``.

    Args:
        encoder: The task; a fresh one, in float32 on the processor.
        out: The folder; an earlier export stays until the new one is complete.

    Raises:
        ConfigError: If packages are missing.
        BackboneError: If a graph cannot be made, or gives other vectors than torch.
    """
    check_installed()
    pooling = encoder.backbone.pooling
    prefixes = {"query": pooling.query_prefix, "passage": pooling.passage_prefix}
    sides: dict[str, dict[str, Any]] = {}
    with atomic_folder(out) as folder:
        for side in get_args(Side):
            file = f"{side}.onnx" if encoder.is_two_sided else "model.onnx"
            if not (folder / file).exists():
                difference = _write(encoder, folder / file, side=side)
            sides[side] = {
                "file": file,
                "prefix": prefixes[side],
                "max_tokens": min(encoder.limits.of(side), pooling.max_tokens),
                "largest_difference": difference,
            }
        encoder.backbone.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        found: dict[str, Any] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "task": encoder.name,
            "backbone": encoder.backbone.name,
            "query_fingerprint": encoder.query_fingerprint,
            "passage_fingerprint": encoder.passage_fingerprint,
            "dim": encoder.dim,
            "padding_id": encoder.backbone.tokenizer.pad_token_id or 0,
            "sides": sides,
        }
        write_json(folder / MANIFEST, found)
    return found


def _write(encoder: Encoder, file: Path, *, side: Side) -> float:
    """Write one graph and return its difference to torch, relative to the longest vector."""
    backbone = encoder.backbone
    graph = _SideGraph(encoder, side=side)
    write_graph(graph, backbone, file, inputs=2)
    largest, _ = compare(graph, backbone, file)
    if not largest <= FP32_TOLERANCE:
        raise BackboneError(
            f"task '{encoder.name}': the graph of the {side} side differs from torch by "
            f"{largest:.1e}, more than {FP32_TOLERANCE}; serve it with torch"
        )
    return largest
