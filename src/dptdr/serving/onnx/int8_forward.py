"""Compute batches with an 8-bit graph from ``dptdr export``."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dptdr.errors import ConfigError, WrongBackbone
from dptdr.io.atomic import sha256_file
from dptdr.io.probe import same_probe
from dptdr.model.backbone import Backbone
from dptdr.serving.forward import BatchRow, Forward, gather
from dptdr.serving.onnx.exporting import FILES, INPUTS, open_session, read_export

INT8_TOLERANCE = 0.1
"""8-bit graphs scale activations per batch, so a vector depends slightly on its batch."""


class OnnxForward(Forward):
    """Computes padded batches in 8 bits; bundles are still verified with torch.

    Args:
        backbone: The exported backbone.
        folder: The export.
        threads: CPU threads; 0 for the runtime's default.

    Raises:
        ConfigError: If the folder or the graph is missing or broken.
        WrongBackbone: If the graph was exported from a different backbone.
    """

    def __init__(self, backbone: Backbone, folder: Path, *, threads: int = 0) -> None:
        super().__init__(backbone, layout="padded", ordered=False)
        self.export = read_export(folder)
        if self.export["backbone_fingerprint"] != backbone.fingerprint:
            raise WrongBackbone(
                f"{folder}: expected a graph of backbone '{backbone.name}' with fingerprint "
                f"{backbone.fingerprint}, got one of '{self.export['backbone']}' with "
                f"{self.export['backbone_fingerprint']}; export this backbone"
            )
        if not same_probe(self.export["probe"], backbone.probe):
            raise WrongBackbone(
                f"{folder}: backbone '{backbone.name}' has the weights that were exported, but "
                "encodes differently; check whether config.json has changed, or export again"
            )
        file = folder / FILES["int8"]
        if not file.is_file():
            raise ConfigError(
                f"{file}: no such graph; the server needs an 8-bit graph (float32 is slower than "
                "torch), create it with `dptdr export --int8`"
            )
        if self.export["files"].get(file.name) != sha256_file(file):
            raise ConfigError(
                f"{file}: expected the graph that was exported, got another file or a damaged one; "
                "export again"
            )
        self.session = open_session(file, threads=threads)
        self.tolerance = INT8_TOLERANCE

    def vectors(
        self, rows: Sequence[BatchRow], *, merge: bool | None = None
    ) -> Float[Tensor, "texts dim"]:
        """Compute one float32 vector per row, in order; ``merge`` is ignored.

        Raises:
            ConfigError: If a prompt has feed-forward rows or shifts positions.
        """
        del merge
        for row in rows:
            if row.prompt is not None:
                check_supported(
                    feed_forward=row.prompt.feed_forward is not None, shifted=bool(row.prompt.shift)
                )
        tokens = self.backbone.pad([row.ids for row in rows])
        inputs = (tokens.ids.numpy(), tokens.mask.numpy(), *self._prompts(rows))
        made = self.session.run(None, dict(zip(INPUTS, inputs, strict=True)))[0]
        return torch.from_numpy(np.asarray(made, dtype=np.float32))

    def _prompts(self, rows: Sequence[BatchRow]) -> tuple[np.ndarray, ...]:
        prompts = gather([row.prompt for row in rows])
        texts = len(rows)
        if prompts is None:
            geometry = self.backbone.geometry
            shape = (geometry.layers, texts, geometry.heads, 1, geometry.head_dim)
            nothing = np.zeros(shape, dtype=np.float32)
            return nothing, nothing, np.zeros((texts, 1), dtype=np.bool_)
        visible = prompts.visible
        if visible is None:
            visible = torch.ones(texts, prompts.keys.shape[3], dtype=torch.bool)
        keys, values = (
            part.expand(-1, texts, -1, -1, -1).contiguous().numpy()
            for part in (prompts.keys, prompts.values)
        )
        return keys, values, visible.numpy()


def check_supported(*, feed_forward: bool, shifted: bool) -> None:
    """Reject prompts that the graphs do not support.

    Args:
        feed_forward: The prompt has feed-forward rows.
        shifted: The prompt shifts positions.

    Raises:
        ConfigError: If either is true.
    """
    if feed_forward:
        raise ConfigError(
            "ONNX graphs do not support feed-forward rows; train the task with --ffn-length 0, or "
            "serve with torch"
        )
    if shifted:
        raise ConfigError(
            "ONNX graphs do not support prompts that shift positions; serve with torch"
        )
