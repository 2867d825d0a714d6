"""The backbone as one ONNX graph whose prompt is an input: any task, any mixture, no torch.

::

    FOLDER/model.onnx       float32
    FOLDER/model.int8.onnx  weights of matrix products in 8 bits, where asked for
    FOLDER/export.json      what the graph takes, what made it, how far it is from torch
    FOLDER/tokenizer.json   with the limits and prefixes in export.json

Inputs: ``input_ids`` and ``attention_mask`` ``[texts, tokens]``, ``prompt_keys`` and
``prompt_values`` ``[layers, texts, heads, prompt, head_dim]``, ``prompt_mask`` ``[texts, prompt]``
(true: the text sees the row). Output: ``vectors`` ``[texts, dim]``. A text that sees no row gets
the bare backbone's vector.
"""

import importlib.util
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dptdr.errors import BackboneError, ConfigError, DataError
from dptdr.io.atomic import atomic_folder, read_json, write_json
from dptdr.model.backbone import Backbone, Tokens
from dptdr.model.rows import AttentionRows

Precision = Literal["fp32", "int8"]

FORMAT = "dptdr-onnx"
FORMAT_VERSION = 1
MANIFEST = "export.json"
FILES: dict[Precision, str] = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
INPUTS = ("input_ids", "attention_mask", "prompt_keys", "prompt_values", "prompt_mask")

FP32_TOLERANCE = 1e-4
"""How far the float32 graph may be from torch, in units of the longest vector."""

_LEAST_COSINE = 0.9


class _Graph(nn.Module):
    """What is traced."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.model = backbone.model
        self._backbone = backbone

    def forward(
        self,
        input_ids: Int[Tensor, "texts tokens"],
        attention_mask: Int[Tensor, "texts tokens"],
        prompt_keys: Float[Tensor, "layers texts heads prompt head_dim"],
        prompt_values: Float[Tensor, "layers texts heads prompt head_dim"],
        prompt_mask: Bool[Tensor, "texts prompt"],
    ) -> Float[Tensor, "texts dim"]:
        """Return one vector per text."""
        rows = AttentionRows(prompt_keys, prompt_values, prompt_mask)
        return self._backbone.vectors(Tokens(input_ids, attention_mask), attention=rows)


def check_installed() -> None:
    """Refuse to go on without the packages of the ``export`` extra.

    Raises:
        ConfigError: Naming what is missing.
    """
    missing = [
        name
        for name in ("onnx", "onnxscript", "onnxruntime")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ConfigError(
            f"exporting needs {', '.join(missing)}; install them with: pip install 'dptdr[export]'"
        )


def export(backbone: Backbone, out: Path, *, int8: bool = False) -> dict[str, Any]:
    """Write a backbone as an ONNX graph, checked against torch.

    Args:
        backbone: The encoder; a fresh one, in float32 on the processor.
        out: The folder; what stands there stays until the new one is complete.
        int8: Whether to write the 8-bit graph as well.

    Returns:
        What was written to ``export.json``.

    Raises:
        ConfigError: If packages are missing.
        BackboneError: If the graph cannot be made, or gives other vectors than torch.
    """
    check_installed()
    with atomic_folder(out) as folder:
        _write_backbone(backbone, folder / FILES["fp32"])
        backbone.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        found: dict[str, Any] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "backbone": backbone.name,
            "backbone_fingerprint": backbone.fingerprint,
            "prompt_attention": "joint",
            "geometry": asdict(backbone.geometry),
            "dim": backbone.dim,
            "pooling": asdict(backbone.pooling),
            "largest_difference": {},
            "least_cosine": {},
        }
        precisions: list[Precision] = ["fp32"]
        if int8:
            _quantise(folder)
            precisions.append("int8")
        for precision in precisions:
            difference, cosine = compare(backbone, folder / FILES[precision])
            found["largest_difference"][precision] = difference
            found["least_cosine"][precision] = cosine
            _check(backbone, precision, difference=difference, cosine=cosine)
        write_json(folder / MANIFEST, found)
    return found


DYNAMIC = torch.export.Dim.DYNAMIC


def _write_backbone(backbone: Backbone, file: Path) -> None:
    rows = {1: DYNAMIC, 3: DYNAMIC}
    pairs = {0: DYNAMIC, 1: DYNAMIC}
    write_graph(
        _Graph(backbone),
        file,
        sample=sample_inputs(backbone, lengths=(7, 4, 5), prompts=(3, 0, 2)),
        shapes=(pairs, pairs, rows, rows, pairs),
        name=backbone.name,
    )


def write_graph(
    module: nn.Module,
    file: Path,
    *,
    sample: Sequence[np.ndarray],
    shapes: tuple[dict[int, Any], ...],
    name: str,
) -> None:
    """Write a module as an ONNX graph with the output ``vectors``.

    Args:
        module: Takes the first inputs of :data:`INPUTS`.
        file: The graph.
        sample: Inputs to trace it with.
        shapes: Which axes of each input vary.
        name: The backbone's name, for the message.

    Raises:
        BackboneError: If it cannot be written.
    """
    before = [logging.getLogger(name).level for name in ("onnxscript", "torch.onnx")]
    try:
        for name in ("onnxscript", "torch.onnx"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                tuple(torch.from_numpy(value) for value in sample),
                str(file),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=list(INPUTS[: len(sample)]),
                output_names=["vectors"],
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise BackboneError(
            f"backbone '{name}' cannot be written as an ONNX graph: "
            f"{reason[0] if reason else type(error).__name__}; serve it with torch"
        ) from error
    finally:
        for name, level in zip(("onnxscript", "torch.onnx"), before, strict=True):
            logging.getLogger(name).setLevel(level)


def _quantise(folder: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        quantize_dynamic(
            str(folder / FILES["fp32"]),
            str(folder / FILES["int8"]),
            weight_type=QuantType.QInt8,
            per_channel=True,
            # 7 bits: processors without VNNI add products of 8 bits in 16 and would overflow.
            reduce_range=True,
            op_types_to_quantize=["MatMul", "Gemm"],
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logging.getLogger().setLevel(level)


def sample_inputs(
    backbone: Backbone, *, lengths: Sequence[int], prompts: Sequence[int], seed: int = 0
) -> tuple[np.ndarray, ...]:
    """Return inputs of the graph for random texts with random prompts.

    Args:
        backbone: Whose vocabulary and geometry.
        lengths: Tokens of each text.
        prompts: Prompt rows that each text sees.
        seed: Decides all numbers.

    Returns:
        Arrays in the order of :data:`INPUTS`.
    """
    generator = np.random.default_rng(seed)
    geometry = backbone.geometry
    vocabulary = int(backbone.model.get_input_embeddings().weight.shape[0])
    shape = (geometry.layers, len(lengths), geometry.heads, max(1, *prompts), geometry.head_dim)
    longest = max(lengths)
    mask = np.arange(longest)[None, :] < np.array(lengths)[:, None]
    ids = generator.integers(5, vocabulary, size=mask.shape) * mask
    visible = np.arange(shape[3])[None, :] < np.array(prompts)[:, None]
    keys, values = (generator.standard_normal(shape).astype(np.float32) for _ in range(2))
    return ids.astype(np.int64), mask.astype(np.int64), keys, values, visible


def compare(backbone: Backbone, file: Path) -> tuple[float, float]:
    """Return how far a graph is from torch on random mixtures.

    Args:
        backbone: The truth.
        file: The graph.

    Returns:
        Largest difference in units of the longest vector, and least cosine.
    """
    session = open_session(file)
    graph = _Graph(backbone)
    largest, least = 0.0, 1.0
    for seed, (lengths, prompts) in enumerate(
        (((3, 9, 40, 5), (0, 7, 2, 4)), ((12,), (0,)), ((1, 33), (16, 1)))
    ):
        inputs = sample_inputs(backbone, lengths=lengths, prompts=prompts, seed=seed)
        with torch.no_grad():
            right = graph(*(torch.from_numpy(value) for value in inputs)).numpy()
        made = session.run(None, dict(zip(INPUTS, inputs, strict=True)))[0]
        norms = np.linalg.norm(right, axis=1)
        largest = max(largest, float(np.abs(made - right).max() / max(1.0, norms.max())))
        cosines = (made * right).sum(1) / (np.linalg.norm(made, axis=1) * norms)
        least = min(least, float(cosines.min()))
    return largest, least


def _check(backbone: Backbone, precision: Precision, *, difference: float, cosine: float) -> None:
    good = difference <= FP32_TOLERANCE if precision == "fp32" else cosine >= _LEAST_COSINE
    if not good:
        raise BackboneError(
            f"backbone '{backbone.name}': the {precision} graph differs from torch by "
            f"{difference:.1e} (cosine {cosine:.3f}), more than allowed; serve it with torch"
        )


def open_session(file: Path, *, threads: int = 0) -> Any:
    """Return an ONNX Runtime session on the processor.

    Args:
        file: The graph.
        threads: Processor threads, 0 for the runtime's own choice.

    Returns:
        The session.

    Raises:
        ConfigError: If ONNX Runtime is missing or the file is no graph.
    """
    check_installed()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ConfigError(f"{file}: expected an ONNX graph, {str(error)[:200]}") from None


def read_export(folder: Path) -> dict[str, Any]:
    """Read ``export.json``.

    Raises:
        ConfigError: If the folder holds no export, or one of another format.
    """
    try:
        found: dict[str, Any] = read_json(folder / MANIFEST)
    except DataError as error:
        raise ConfigError(f"{error}; expected a folder that `dptdr export` wrote") from None
    if found.get("prompt_attention", "joint") != "joint":
        raise ConfigError(
            f"{folder / MANIFEST}: expected prompts that share the tokens' softmax; export again"
        )
    if found.get("format") != FORMAT or found.get("format_version") != FORMAT_VERSION:
        raise ConfigError(
            f"{folder / MANIFEST}: expected format {FORMAT} {FORMAT_VERSION}, got "
            f"{found.get('format')} {found.get('format_version')}"
        )
    return found
