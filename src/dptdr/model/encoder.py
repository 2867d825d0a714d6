"""Encode texts into vectors, with the bare backbone or any tuned task."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dptdr.config.methods import settings_of
from dptdr.errors import ConfigError, DptdrError, VectorsError
from dptdr.io.lines import describe
from dptdr.model import fingerprints
from dptdr.model.backbone import Backbone, Side
from dptdr.model.methods import DeepPromptMethod, Method
from dptdr.model.packing import PromptRows
from dptdr.model.shallow import ShallowPromptMethod
from dptdr.model.unpadded import Unpadded

OnProgress = Callable[[int, int], None]

_SHAPING = ("position", "alpha")
_UNPADDED_TOKENS = 2048
"""Tokens per unpadded batch, few enough for its states to stay in the CPU cache."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Maximum query and passage lengths, in tokens including special ones; longer texts are cut."""

    max_query_tokens: int
    max_passage_tokens: int

    def of(self, side: Side) -> int:
        """Return one side's limit."""
        return self.max_query_tokens if side == "query" else self.max_passage_tokens


def longest_text(backbone: Backbone, method: Method | None) -> int:
    """Return the most tokens of a text that the backbone takes beside the method's prompt."""
    limit: int = getattr(method, "max_tokens", backbone.pooling.max_tokens)
    return limit


def length_sorted_batches(
    lengths: Sequence[int], *, token_budget: int, max_texts: int, max_padding: int = 256
) -> Iterator[list[int]]:
    """Yield batches of text indices, sorted by length to reduce padding.

    The longest texts come first, so memory peaks in the first batch. A batch also ends where its
    padding would exceed ``max_padding``: on a CPU, a forward pass over few texts costs less than
    padding many short texts to a long one (training steps of 64 short utterances fell from 1.2 to
    0.75 s).

    Args:
        token_budget: Maximum padded tokens per batch; a longer text forms its own batch.
        max_padding: Maximum padding tokens per batch.

    Yields:
        Indices into ``lengths``, each exactly once; ties keep their order.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        longest = max(1, lengths[order[start]])
        limit = start + max(1, min(max_texts, token_budget // longest))
        stop, padding = start + 1, 0
        while stop < min(limit, len(order)):
            padding += longest - lengths[order[stop]]
            if padding > max_padding:
                break
            stop += 1
        yield order[start:stop]
        start = stop


class BatchSizes(NamedTuple):
    """Batch size limits: padded tokens, texts, and padding tokens."""

    tokens: int
    texts: int
    padding: int


# Padding is expensive on a CPU, small matrices are not; a GPU pays for every kernel launch.
_PROCESSOR = BatchSizes(tokens=4096, texts=64, padding=256)
_ELSEWHERE = BatchSizes(tokens=65536, texts=1024, padding=65536)


def batch_sizes(device: torch.device) -> BatchSizes:
    """Return suitable batch sizes for a device; vectors depend on them only by rounding."""
    return _PROCESSOR if device.type == "cpu" else _ELSEWHERE


class Encoder:
    """Encodes queries and passages with a tuned task or the bare backbone.

    Args:
        backbone: The encoder; ignored if there is a method, which has its own.
        method: A tuned task's method; ``None`` for the bare backbone.
        limits: Maximum text lengths; by default those of backbone and method.
        token_budget: Maximum padded tokens per batch; 0 chooses by device.
        max_texts: Maximum texts per batch; 0 chooses by device.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        method: Method | None = None,
        limits: Limits | None = None,
        name: str | None = None,
        token_budget: int = 0,
        max_texts: int = 0,
    ) -> None:
        self.method = method
        self.backbone = backbone if method is None else method.backbone
        longest = longest_text(self.backbone, method)
        self.limits = limits or Limits(max_query_tokens=longest, max_passage_tokens=longest)
        self.name = name or backbone.name
        self.token_budget = token_budget
        self.max_texts = max_texts
        self._base_fingerprint = backbone.fingerprint if method is None else method.base_fingerprint
        self.backbone_probe = backbone.probe if method is None else method.base_probe
        self._unpadded: Unpadded | None = None

    def eval(self) -> str:
        """Speed up encoding; backbone and method can then no longer be trained or saved.

        Removes padding and prepacks linear layers for the CPU, if a trial reproduces the vectors
        within 2e-5 of their largest value.

        Returns:
            The reason if this encoder cannot be sped up, otherwise an empty string.
        """
        if isinstance(self.method, ShallowPromptMethod):
            return "shallow prompts are prepended to every text, so texts cannot be packed"
        if self._unpadded is None:
            try:
                self._unpadded = Unpadded(self.backbone)
            except DptdrError as error:
                return str(error)
        return ""

    @property
    def dim(self) -> int:
        """Vector dimension."""
        return self.backbone.dim

    @property
    def is_two_sided(self) -> bool:
        """True if queries and passages use different prompts, or only queries use one."""
        return getattr(getattr(self.method, "config", None), "sharing", "tied") != "tied"

    @property
    def backbone_fingerprint(self) -> str:
        """Fingerprint of the untuned backbone."""
        return self._base_fingerprint

    @property
    def query_fingerprint(self) -> str:
        """Fingerprint of everything that query vectors depend on."""
        return self._fingerprint("query")

    @property
    def passage_fingerprint(self) -> str:
        """Fingerprint of everything that passage vectors depend on."""
        return self._fingerprint("passage")

    @property
    def weights_dtype(self) -> str:
        """Dtype of the backbone's weights, such as ``float32``."""
        return str(next(self.backbone.model.parameters()).dtype).removeprefix("torch.")

    def _fingerprint(self, side: Side) -> str:
        # Not cached: the method may have been trained since.
        parts = [self._base_fingerprint, str(self.limits.of(side))]
        method = self.method
        if method is not None and method.changes(side):
            state = method.state()
            if isinstance(method, DeepPromptMethod) and method.config.sharing == "untied":
                # Use a tied prompt's names: equal rows produce equal vectors.
                state = {
                    "shared" + name.removeprefix(side): tensor
                    for name, tensor in state.items()
                    if name.split(".")[0] == side
                }
            elif "shared" not in state and side in state:
                state = {"shared": state[side]}
            # Initialisation and regularisation do not affect the trained prompt's vectors.
            kept = {k: v for k, v in settings_of(method.config).items() if k in _SHAPING}
            if isinstance(method, DeepPromptMethod):
                # Formerly a setting; kept so that fingerprints do not change.
                kept["attention"] = "joint"
            parts.append(fingerprints.hash_tensors(state))
            parts.append(fingerprints.hash_settings({"method": method.name, **kept}))
        return fingerprints.combine(*parts)

    def encode_queries(
        self, texts: Sequence[str], *, on_progress: OnProgress | None = None
    ) -> Float[np.ndarray, "texts dim"]:
        """Encode queries into float32 vectors, in the given order; scores are dot products.

        Args:
            on_progress: Called with (texts done, total texts).

        Raises:
            ConfigError: If ``texts`` is not a list of strings.
            VectorsError: If a vector contains NaN or infinity.
        """
        return self._encode(texts, side="query", on_progress=on_progress)

    def encode_passages(
        self, texts: Sequence[str], *, on_progress: OnProgress | None = None
    ) -> Float[np.ndarray, "texts dim"]:
        """Encode passages into float32 vectors, in the given order; scores are dot products.

        Args:
            texts: Title and text joined, as in ``Passage.content``.
            on_progress: Called with (texts done, total texts).

        Raises:
            ConfigError: If ``texts`` is not a list of strings.
            VectorsError: If a vector contains NaN or infinity.
        """
        return self._encode(texts, side="passage", on_progress=on_progress)

    def _encode(
        self, texts: Any, *, side: Side, on_progress: OnProgress | None
    ) -> Float[np.ndarray, "texts dim"]:
        if not isinstance(texts, Iterable) or isinstance(
            texts, str | bytes | dict | set | frozenset
        ):
            raise ConfigError(
                f"expected a list of texts, got {type(texts).__name__}; put a single text in a list"
            )
        # A list first: looking through an iterator would leave nothing to encode.
        texts = list(texts)
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise ConfigError(f"texts[{number}]: expected a text, got {describe(text)}")
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        if not texts:
            return vectors
        ids = self.backbone.tokenize(texts, side=side, max_tokens=self.limits.of(side))
        done = 0
        with self._evaluating(), torch.inference_mode():
            for batch, made in self._batches(ids, side=side):
                vectors[batch] = made.float().cpu().numpy()
                done += len(batch)
                if on_progress is not None:
                    on_progress(done, len(texts))
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(broken):
            raise VectorsError(
                f"'{self.name}': the vector of text {broken[0] + 1} of {len(texts)} contains NaN "
                "or infinity; check its weights for damage"
            )
        return vectors

    def vectors(self, ids: Sequence[list[int]], *, side: Side) -> Float[Tensor, "texts dim"]:
        """Encode token ids into one float32 vector per text, on the backbone's device.

        ``ids`` come from ``backbone.tokenize``. Gradients flow to the trainable parameters.
        """
        made = list(self._batches(ids, side=side))
        order = torch.tensor([number for batch, _ in made for number in batch])
        vectors = torch.cat([vectors.float() for _, vectors in made])
        return vectors[torch.argsort(order).to(vectors.device)]

    def _batches(
        self, ids: Sequence[list[int]], *, side: Side
    ) -> Iterator[tuple[list[int], Float[Tensor, "texts dim"]]]:
        """Yield batches of text indices with their vectors."""
        lengths = [len(row) for row in ids]
        # The trial did not cover autocast, which changes precision.
        if self._unpadded is not None and not torch.is_autocast_enabled("cpu"):
            prompt = self._prompt_rows(side)
            for batch in length_sorted_batches(
                lengths,
                token_budget=_UNPADDED_TOKENS,
                max_texts=self.max_texts or _UNPADDED_TOKENS,
                max_padding=_UNPADDED_TOKENS,
            ):
                yield batch, self._unpadded.vectors([ids[i] for i in batch], prompt=prompt)
            return
        sizes = batch_sizes(self.backbone.device)
        for batch in length_sorted_batches(
            lengths,
            token_budget=self.token_budget or sizes.tokens,
            max_texts=self.max_texts or sizes.texts,
            max_padding=sizes.padding,
        ):
            tokens = self.backbone.pad([ids[i] for i in batch])
            if self.method is None:
                yield batch, self.backbone.vectors(tokens)
            else:
                yield batch, self.method.vectors(tokens, side=side)

    def _prompt_rows(self, side: Side) -> PromptRows | None:
        """Return a side's deep prompt for packed attention."""
        if not isinstance(self.method, DeepPromptMethod):
            return None
        prompt = self.method.prompt(side)
        if prompt is None:
            return None
        config = self.method.config
        keys, values = (
            rows.transpose(1, 2).contiguous() for rows in prompt.rows().detach().unbind(dim=1)
        )
        with torch.no_grad():
            feed_forward = prompt.feed_forward()
        return PromptRows(
            keys,
            values,
            shift=prompt.prompt_length if config.position == "shifted" else 0,
            feed_forward=feed_forward,
        )

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Put the method in eval mode within the block."""
        module = None if self.method is None else self.method.module
        if module is None or not module.training:
            yield
            return
        module.eval()
        try:
            yield
        finally:
            module.train()

    def describe(self) -> dict[str, Any]:
        """Return this encoder's entry in manifests."""
        return {
            "name": self.name,
            "backbone": self.backbone.name,
            "backbone_fingerprint": self.backbone_fingerprint,
            "query_fingerprint": self.query_fingerprint,
            "passage_fingerprint": self.passage_fingerprint,
            "dim": self.dim,
            "limits": asdict(self.limits),
        }
