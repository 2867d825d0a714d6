"""Export a complete task as ONNX graphs, with the prompt folded into the backbone.

::

    FOLDER/model.onnx       queries and passages, if they share a prompt
    FOLDER/query.onnx       otherwise one graph
    FOLDER/passage.onnx     per side
    FOLDER/tokenizer.json   for the tokenizers package
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
from dptdr.model.encoder import Encoder, longest_text
from dptdr.serving.onnx.exporting import (
    FORMAT_VERSION,
    FP32_TOLERANCE,
    MANIFEST,
    check_installed,
    compare,
    refuse_other,
    write_graph,
)

FORMAT = "dptdr-onnx-task"


class _SideGraph(nn.Module):
    """One side of a task, to be traced."""

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
        """Compute one vector per text."""
        tokens = Tokens(input_ids, attention_mask)
        method = self._encoder.method
        if method is None or not method.changes(self._side):
            return self._encoder.backbone.vectors(tokens)
        return method.vectors(tokens, side=self._side)


def export_task(encoder: Encoder, out: Path) -> dict[str, Any]:
    """Export a task as ONNX graphs verified against torch; return its ``export.json``.

    Args:
        encoder: A freshly loaded task in float32 on the CPU.
        out: The folder; an earlier export is kept until the new one is complete.

    Raises:
        ConfigError: If packages are missing.
        OutputError: If ``out`` has files other than those of an export.
        BackboneError: If tracing fails, or a graph's vectors differ from torch.
    """
    check_installed()
    refuse_other(out)
    pooling = encoder.backbone.pooling
    prefixes = {"query": pooling.query_prefix, "passage": pooling.passage_prefix}
    sides: dict[str, dict[str, Any]] = {}
    longest = longest_text(encoder.backbone, encoder.method)
    limit = max(encoder.limits.of(side) for side in get_args(Side))
    if limit > longest:
        raise BackboneError(
            f"task '{encoder.name}': texts of up to {limit} tokens do not fit beside its prompt "
            f"(at most {longest}), as in bundles of earlier versions; train it again"
        )
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
    """Write one graph and return its difference from torch, relative to the largest norm."""
    backbone = encoder.backbone
    graph = _SideGraph(encoder, side=side)
    write_graph(graph, backbone, file, inputs=2)
    largest, _ = compare(graph, backbone, file, longest=encoder.limits.of(side))
    if not largest <= FP32_TOLERANCE:
        raise BackboneError(
            f"task '{encoder.name}': the {side} graph differs from torch by {largest:.1e}, more "
            f"than {FP32_TOLERANCE}; serve it with torch"
        )
    return largest
