"""The encoder: texts in, vectors out, for the bare backbone or any tuned task."""

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
from dptdr.model import fingerprints
from dptdr.model.backbone import Backbone, Side
from dptdr.model.methods import DeepPromptMethod, Method
from dptdr.model.packing import PromptRows
from dptdr.model.shallow import ShallowPromptMethod
from dptdr.model.unpadded import Unpadded

OnProgress = Callable[[int, int], None]

_SHAPING = ("position", "alpha")
_UNPADDED_TOKENS = 2048
"""Tokens of a batch without padding: its states stay in the processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Longest queries and passages in tokens, special ones included; longer ones are cut."""

    max_query_tokens: int
    max_passage_tokens: int

    def of(self, side: Side) -> int:
        """Return one side's limit."""
        return self.max_query_tokens if side == "query" else self.max_passage_tokens


def length_sorted_batches(
    lengths: Sequence[int], *, token_budget: int, max_texts: int, max_padding: int = 256
) -> Iterator[list[int]]:
    """Yield batches of text numbers, sorted by length to save padding.

    Longest first: memory peaks in the first batch, not after an hour. A batch also ends where its
    padding would exceed ``max_padding``: on a processor a forward pass over few texts costs less
    than padding many short ones to one long one (training steps of 64 short utterances fell from
    1.2 to 0.75 s of processor time).

    Args:
        token_budget: Maximum padded tokens per batch; a longer text forms its own batch.
        max_padding: Maximum padding tokens per batch.

    Yields:
        Positions in ``lengths``; every text exactly once; ties in the given order.
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
    """How much is encoded at once: padded tokens, texts, and tokens of padding."""

    tokens: int
    texts: int
    padding: int


# A processor is as fast with small matrices, and padding costs it; a GPU waits for each launch.
_PROCESSOR = BatchSizes(tokens=4096, texts=64, padding=256)
_ELSEWHERE = BatchSizes(tokens=65536, texts=1024, padding=65536)


def batch_sizes(device: torch.device) -> BatchSizes:
    """Return how much to encode at once on a device.

    Returns:
        The sizes; vectors do not depend on them, up to rounding.
    """
    return _PROCESSOR if device.type == "cpu" else _ELSEWHERE


class Encoder:
    """Encodes queries and passages with one task, or with the bare backbone.

    Args:
        backbone: The encoder; ignored where a method is given, which brings its own.
        method: A tuned task's method; ``None`` is the bare backbone.
        limits: Longest texts; the backbone's own limit by default.
        token_budget: Most padded tokens per batch; 0 takes what suits the device.
        max_texts: Most texts per batch; 0 takes what suits the device.
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
        longest = self.backbone.pooling.max_tokens
        self.limits = limits or Limits(max_query_tokens=longest, max_passage_tokens=longest)
        self.name = name or backbone.name
        self.token_budget = token_budget
        self.max_texts = max_texts
        self._base_fingerprint = backbone.fingerprint if method is None else method.base_fingerprint
        self.backbone_probe = backbone.probe if method is None else method.base_probe
        self._unpadded: Unpadded | None = None

    def eval(self) -> str:
        """Make encoding faster; backbone and method can then no longer be trained or saved.

        Drops padding and reorders linear layers for the processor, if a trial returns the same
        vectors up to rounding (2e-5 of the longest).

        Returns:
            Why nothing changes for this encoder; empty if something does.
        """
        if isinstance(self.method, ShallowPromptMethod):
            return "shallow prompts enter as words, before every text"
        if self._unpadded is None:
            try:
                self._unpadded = Unpadded(self.backbone)
            except DptdrError as error:
                return str(error)
        return ""

    @property
    def dim(self) -> int:
        """Numbers per vector."""
        return self.backbone.dim

    @property
    def is_two_sided(self) -> bool:
        """Whether queries and passages use different prompts, or only queries use one."""
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
        """Number type of the backbone's weights, such as ``float32``."""
        return str(next(self.backbone.model.parameters()).dtype).removeprefix("torch.")

    def _fingerprint(self, side: Side) -> str:
        # Computed each time: the method may have been trained on since.
        parts = [self._base_fingerprint, str(self.limits.of(side))]
        method = self.method
        if method is not None and method.changes(side):
            state = method.state()
            if isinstance(method, DeepPromptMethod) and method.config.sharing == "untied":
                # Named as a tied prompt's rows are: equal rows make equal vectors.
                state = {
                    "shared" + name.removeprefix(side): tensor
                    for name, tensor in state.items()
                    if name.split(".")[0] == side
                }
            elif "shared" not in state and side in state:
                state = {"shared": state[side]}
            # How a prompt was started or regularised does not shape the vectors it makes.
            kept = {k: v for k, v in settings_of(method.config).items() if k in _SHAPING}
            if isinstance(method, DeepPromptMethod):
                # A choice once; it stays in the hash, so that fingerprints stay.
                kept["attention"] = "joint"
            parts.append(fingerprints.hash_tensors(state))
            parts.append(fingerprints.hash_settings({"method": method.name, **kept}))
        return fingerprints.combine(*parts)

    def encode_queries(
        self, texts: Sequence[str], *, on_progress: OnProgress | None = None
    ) -> Float[np.ndarray, "texts dim"]:
        """Return one float32 vector per query, in the given order.

        Args:
            on_progress: Called with (texts done, texts in all).

        Returns:
            The vectors; scores are dot products.
        """
        return self._encode(texts, side="query", on_progress=on_progress)

    def encode_passages(
        self, texts: Sequence[str], *, on_progress: OnProgress | None = None
    ) -> Float[np.ndarray, "texts dim"]:
        """Return one float32 vector per passage, in the given order.

        Args:
            texts: The passages (title and text joined, ``Passage.content``).
            on_progress: Called with (texts done, texts in all).

        Returns:
            The vectors; scores are dot products.
        """
        return self._encode(texts, side="passage", on_progress=on_progress)

    def _encode(
        self, texts: Any, *, side: Side, on_progress: OnProgress | None
    ) -> Float[np.ndarray, "texts dim"]:
        listed = isinstance(texts, Iterable) and not isinstance(texts, str | bytes | dict)
        # A list first: looking through an iterator would leave nothing to encode.
        given, texts = texts, list(texts) if listed else [None]
        if not all(isinstance(text, str) for text in texts):
            raise ConfigError(
                f"expected a list of texts, got {type(given).__name__}; put a single text in a list"
            )
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
                f"'{self.name}': the vector of text {broken[0] + 1} of {len(texts)} holds NaN or "
                "infinity; are its weights damaged?"
            )
        return vectors

    def vectors(self, ids: Sequence[list[int]], *, side: Side) -> Float[Tensor, "texts dim"]:
        """Return one float32 vector per text of token ids, on the backbone's device.

        ``ids`` come from ``backbone.tokenize``. Gradients flow to the trained parameters.
        """
        made = list(self._batches(ids, side=side))
        order = torch.tensor([number for batch, _ in made for number in batch])
        vectors = torch.cat([vectors.float() for _, vectors in made])
        return vectors[torch.argsort(order).to(vectors.device)]

    def to_sentence_transformer(self, *others: "Encoder") -> Any:
        """Return this task as a sentence-transformers model that shares its weights.

        Args:
            others: Further tasks of the same backbone, for ``encode(..., prompt_task=[...])``.

        Returns:
            A ``SentenceTransformer``.

        Raises:
            ConfigError: If the package is missing, or the tasks do not fit together.
        """
        try:
            from dptdr.model.sentence_transformer import to_sentence_transformer
        except ImportError as error:
            raise ConfigError(
                f"a sentence-transformers model needs sentence-transformers 6 ({error}); install "
                "'dptdr[sentence-transformers]'"
            ) from None
        return to_sentence_transformer(self, *others)

    def _batches(
        self, ids: Sequence[list[int]], *, side: Side
    ) -> Iterator[tuple[list[int], Float[Tensor, "texts dim"]]]:
        """Yield the numbers of some texts with their vectors, until all are done."""
        lengths = [len(row) for row in ids]
        # Under autocast the vectors are those of another precision, which was not tried.
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
        """Put the method into eval mode for the block."""
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
