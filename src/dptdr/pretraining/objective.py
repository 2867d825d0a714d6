"""The pretraining objective: masked words, Condenser and span contrast."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from dptdr.config.pretraining import ObjectiveName, PretrainingConfig
from dptdr.model import DeepPrompt, Method, PromptCall, Side, Tokens
from dptdr.model.encoder import batch_sizes, length_sorted_batches
from dptdr.model.methods import DeepPromptMethod
from dptdr.model.pooling import pool_states
from dptdr.pretraining.document_sampling import (
    DEV,
    SIDES,
    TRAIN,
    WARMUP,
    Reader,
    SampledDocument,
    Text,
)
from dptdr.pretraining.heads import CondenserHead, MlmHead
from dptdr.pretraining.losses import sibling_ranks, span_loss
from dptdr.pretraining.readahead import ReadAhead
from dptdr.training import sampling
from dptdr.training.distributed import ProcessGroup
from dptdr.training.gradcache import backward_at_once, backward_in_chunks
from dptdr.training.objective import StepStats

# Texts are encoded in chunks of about this many tokens; gradients are unaffected.
_TOKENS_PER_CHUNK = {"cpu": 4096}
_TOKENS_PER_CHUNK_ELSEWHERE = 65536


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Heads attached to the encoder during pretraining.

    Args:
        mlm: Predicts words from states; ``None`` for span contrast only.
        condenser: ``None`` without that objective.
        trained: Parameters trained along with the encoder, by name.
        new: Randomly initialised parameters, trained alone during warm-up.
    """

    mlm: MlmHead | None = None
    condenser: CondenserHead | None = None
    trained: dict[str, nn.Parameter] = field(default_factory=dict)
    new: dict[str, nn.Parameter] = field(default_factory=dict)


class SpanMicroBatch(NamedTuple):
    """Texts of one side encoded together, and their batch positions."""

    side: Side
    places: tuple[int, ...]
    texts: list[Text]


class Siblings(NamedTuple):
    """Texts with siblings, and their documents.

    ``places`` are text indices; ``siblings`` are indices into ``places``.
    """

    places: list[int]
    siblings: list[int]
    owners: list[int]


class States(NamedTuple):
    """Early and late token states of a chunk."""

    early: Tensor
    late: Tensor
    mask: Tensor


class PretrainingObjective:
    """Gradients of one step, for a whole encoder or a prompt only.

    Args:
        method: ``full`` or ``deep-prompt``.
        heads: Heads required by the objectives.
        objectives: Terms of the loss.
        temperature: Divides the scores of the span contrast.
        on_parts: Called on rank 0 with each step's loss terms.
    """

    def __init__(
        self,
        method: Method,
        reader: Reader,
        heads: Heads,
        config: PretrainingConfig,
        *,
        objectives: Sequence[ObjectiveName],
        temperature: float,
        world: ProcessGroup | None = None,
        on_parts: Callable[[int, dict[str, float]], None] | None = None,
    ) -> None:
        self.method = method
        self.reader = reader
        self.heads = heads
        self.config = config
        self.objectives = tuple(objectives)
        self.temperature = temperature
        self.world = world or ProcessGroup()
        self._on_parts = on_parts
        self._ahead: ReadAhead | None = None
        if config.readers:
            self._ahead = ReadAhead(
                reader,
                self._rows,
                stream=TRAIN,
                steps=config.steps,
                processes=config.readers,
            )
        self._bare = False
        self._early = config.skip_from or max(1, method.backbone.geometry.layers // 2)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters by name."""
        return {**self.method.trained(), **self.heads.trained}

    def backward(self, step: int) -> StepStats:
        """Accumulate the gradients of one step, counted from 0."""
        self._seed_dropout(step)
        documents = self._documents(step, stream=TRAIN)
        texts = [text for document in documents for text in document.texts]
        chunks = self.micro_batches(texts)
        current = _Pass(self, documents=documents, chunks=chunks)
        loss = current.backward()
        self.world.sum_gradients(self.parameters().values())
        if self._on_parts is not None:
            self._on_parts(step, current.parts())
        return StepStats(
            loss=loss,
            texts=len(texts),
            tokens=sum(len(text.ids) for text in texts),
            query_ids=tuple(document.id for document in documents),
        )

    def warm_up(self, step: int) -> float:
        """Accumulate gradients for new heads only, and return the loss."""
        documents = self._documents(step, stream=WARMUP)
        texts = [text for document in documents for text in document.texts]
        masked = self.world.sum_scalar(float(sum(len(text.targets) for text in texts)))
        total = 0.0
        for chunk in self.micro_batches(texts):
            with torch.no_grad():
                states = self.states(chunk)
            loss = sum(self.word_losses(chunk, states).values()) / max(1.0, masked)
            if isinstance(loss, Tensor) and loss.requires_grad:
                loss.backward()
                total += float(loss.detach())
        self.world.sum_gradients(self.heads.new.values())
        return self.world.sum_scalar(total)

    @torch.no_grad()
    def measure(self, *, bare: bool = False) -> dict[str, float]:
        """Compute dev measures on the held-out documents, on this rank only.

        ``bare`` leaves the prompt out.
        """
        rows = [int(row) for row in self.reader.documents.dev]
        documents = self.reader.read(rows, step=0, stream=DEV)
        texts = [text for document in documents for text in document.texts]
        chunks = self.micro_batches(texts)
        current = _Pass(self, documents=documents, chunks=chunks, world=ProcessGroup())
        self._bare = bare
        try:
            loss, ranks = current.measure()
        finally:
            self._bare = False
        found = {f"loss of {name}": value for name, value in current.losses().items()}
        if len(ranks):
            found["sibling R@1"] = float((ranks == 1).float().mean())
            found["sibling RR"] = float((1.0 / ranks.float()).mean())
        else:
            found |= {"sibling R@1": 0.0, "sibling RR": 0.0}
        return {"negative loss": -loss, **found}

    def close(self) -> None:
        """Stop the prefetch workers."""
        if self._ahead is not None:
            self._ahead.close()

    def _documents(self, step: int, *, stream: int) -> list[SampledDocument]:
        if self._ahead is not None and stream == TRAIN:
            return self._ahead.read(step)
        return self.reader.read(self._rows(step), step=step, stream=stream)

    def _rows(self, step: int) -> list[int]:
        """Return this rank's documents in a step."""
        train = self.reader.documents.train
        items = sampling.batch_items(
            items=len(train), batch_size=self.config.batch_size, step=step, seed=self.config.seed
        )
        share = sampling.split_evenly(items, rank=self.world.rank, world=self.world.size)
        return [int(train[item]) for _, item in share]

    def _seed_dropout(self, step: int) -> None:
        """Make the prompt's dropout a function of the step alone."""
        for number, module in enumerate(self.method.module.modules()):
            if isinstance(module, DeepPrompt):
                words = [18, self.config.seed, step, number]
                state = np.random.SeedSequence(words).generate_state(1, np.uint64)
                module.draw_dropout(int(state[0] >> 1))

    def micro_batches(self, texts: Sequence[Text]) -> list[SpanMicroBatch]:
        """Split a batch into chunks of one side with similar lengths."""
        chunks = []
        device = self.method.backbone.device
        for side in SIDES:
            own = [place for place, text in enumerate(texts) if text.side == side]
            for chosen in length_sorted_batches(
                [len(texts[place].ids) for place in own],
                token_budget=_TOKENS_PER_CHUNK.get(device.type, _TOKENS_PER_CHUNK_ELSEWHERE),
                max_texts=self.config.mini_batch_size or max(1, len(own)),
                max_padding=batch_sizes(device).padding,
            ):
                places = tuple(own[number] for number in chosen)
                chunks.append(SpanMicroBatch(side, places, [texts[place] for place in places]))
        return chunks

    def states(self, chunk: SpanMicroBatch) -> States:
        """Run the encoder with its prompt; return early and late token states."""
        backbone = self.method.backbone
        tokens = backbone.pad([text.ids for text in chunk.texts])
        inputs: dict[str, Any] = {"input_ids": tokens.ids, "attention_mask": tokens.mask}
        call = self._prompt_call(chunk.side, tokens, inputs=inputs)
        enabled = self.config.precision == "bfloat16"
        with torch.autocast(backbone.device.type, dtype=torch.bfloat16, enabled=enabled):
            output = backbone.injection(
                call,
                **inputs,
                output_hidden_states=self.heads.condenser is not None,
            )
        late = output.last_hidden_state.float()
        early = late if self.heads.condenser is None else output.hidden_states[self._early].float()
        return States(early, late, tokens.mask)

    def _prompt_call(self, side: Side, tokens: Tokens, *, inputs: dict[str, Any]) -> PromptCall:
        method = self.method
        if self._bare or not isinstance(method, DeepPromptMethod):
            return PromptCall()
        prompt = method.prompt(side)
        if prompt is None:
            return PromptCall()
        if method.config.position == "shifted":
            shift = prompt.prompt_length
            inputs["position_ids"] = method.backbone.shifted_positions(tokens, shift=shift)
        return PromptCall(prompt.attention(), feed_forward=prompt.feed_forward())

    def vectors(self, states: States) -> Float[Tensor, "texts dim"]:
        """Pool states to text vectors, as for retrieval."""
        return pool_states(states.late, states.mask, pooling=self.method.backbone.pooling)

    def word_losses(self, chunk: SpanMicroBatch, states: States) -> dict[ObjectiveName, Tensor]:
        """Compute each masked-word loss, summed over masked tokens."""
        rows = [number for number, text in enumerate(chunk.texts) for _ in text.places]
        places = [place for text in chunk.texts for place in text.places]
        head = self.heads.mlm
        if head is None or not rows:
            return {}
        device = states.late.device
        at = (torch.tensor(rows, device=device), torch.tensor(places, device=device))
        targets = torch.tensor([t for text in chunk.texts for t in text.targets], device=device)
        found: dict[ObjectiveName, Tensor] = {}
        enabled = self.config.precision == "bfloat16"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled):
            if "mlm" in self.objectives:
                found["mlm"] = head(states.late[at])
            if self.heads.condenser is not None:
                plain = replace(self.method.backbone.pooling, normalise=False)
                made = self.heads.condenser(
                    states.early,
                    vectors=pool_states(states.late, states.mask, pooling=plain),
                    mask=states.mask,
                )
                found["condenser"] = head(made[at])
        return {
            name: functional.cross_entropy(scores.float(), targets, reduction="sum")
            for name, scores in found.items()
        }


class _Pass:
    """One step or evaluation: sums over chunks, and the contrast over all spans."""

    def __init__(
        self,
        objective: PretrainingObjective,
        *,
        documents: Sequence[SampledDocument],
        chunks: list[SpanMicroBatch],
        world: ProcessGroup | None = None,
    ) -> None:
        self.objective = objective
        self.world = world or objective.world
        self.chunks = [chunk for chunk in chunks if objective.method.changes(chunk.side)]
        # With query-only prompts, encode passages once with the bare encoder, without a graph.
        self.fixed = [chunk for chunk in chunks if not objective.method.changes(chunk.side)]
        self.pairs = _siblings(documents)
        self.count = len(documents)
        self.single = sum(len(document.texts) < 2 for document in documents)
        learned = [text for chunk in self.chunks for text in chunk.texts]
        self.masked = max(1.0, self.world.sum_scalar(float(sum(len(t.targets) for t in learned))))
        self.paired = max(1.0, self.world.sum_scalar(float(len(self.pairs.places))))
        self.sums: dict[ObjectiveName, float] = {}
        self.contrast = "contrastive" in objective.objectives

    def backward(self) -> float:
        """Run forward and backward passes; return the loss over all ranks."""
        if not self.contrast:
            for chunk in self.chunks:
                loss = self.encode(chunk)[:, -1].sum()
                if loss.requires_grad and torch.isfinite(loss):
                    loss.backward()
            return self.loss()
        with torch.no_grad():
            constants = [self.encode(chunk) for chunk in self.fixed]
        size = self.objective.config.mini_batch_size
        texts = sum(len(chunk.texts) for chunk in self.chunks)
        run = backward_in_chunks if size is not None and size < texts else backward_at_once
        run(
            self.encode,
            self.chunks,
            lambda made: self.loss_of(self.chunks + self.fixed, made + constants),
            proceed=self._proceed,
        )
        return self.loss()

    def _proceed(self, loss: Tensor) -> bool:
        return math.isfinite(self.world.sum_scalar(float(loss.detach())))

    def measure(self) -> tuple[float, Tensor]:
        """Return the loss and the sibling ranks, without gradients."""
        chunks = self.chunks + self.fixed
        made = []
        for chunk in chunks:
            states = self.objective.states(chunk)
            if self.objective.method.changes(chunk.side):
                self._add(self.objective.word_losses(chunk, states))
            made.append(self.objective.vectors(states))
        vectors = _ordered(chunks, made)[self.pairs.places]
        siblings, owners = self._columns(vectors.device)
        if self.contrast:
            self._contrast(vectors)
        return self.loss(), sibling_ranks(vectors, siblings=siblings, owners=owners)

    def encode(self, chunk: SpanMicroBatch) -> Float[Tensor, "texts columns"]:
        """Return vectors, with the chunk's share of the masked-word loss in an extra column.

        The column carries the word loss's gradient through GradCache along with the contrast's. The
        heads are skipped in GradCache's first pass, which has no gradients.
        """
        states = self.objective.states(chunk)
        vectors = self.objective.vectors(states)
        words = vectors.new_zeros(())
        if torch.is_grad_enabled():
            losses = self.objective.word_losses(chunk, states)
            self._add(losses)
            words = words + sum(losses.values()) / self.masked
        column = functional.pad(words.view(1, 1), (0, 0, 0, len(vectors) - 1))
        return torch.cat([vectors, column], dim=1)

    def loss_of(self, chunks: list[SpanMicroBatch], made: list[Tensor]) -> Tensor:
        """Compute this rank's part of the loss: words and contrast."""
        stacked = _ordered(chunks, made)
        return stacked[:, -1].sum() + self._contrast(stacked[self.pairs.places, :-1])

    def _contrast(self, vectors: Tensor) -> Tensor:
        columns = self.world.all_gather(vectors)
        siblings, owners = self._columns(vectors.device)
        counts = self.world.gather_integers(len(vectors))
        offset = sum(counts[: self.world.rank])
        total = span_loss(
            vectors,
            columns,
            rows=torch.arange(offset, offset + len(vectors), device=vectors.device),
            siblings=siblings + offset,
            owners=self.world.all_gather(owners),
            temperature=self.objective.temperature,
        )
        self.sums["contrastive"] = float(total.detach())
        return total / self.paired

    def _columns(self, device: torch.device) -> tuple[Tensor, Tensor]:
        siblings = torch.tensor(self.pairs.siblings, dtype=torch.long, device=device)
        owners = torch.tensor(self.pairs.owners, dtype=torch.long, device=device)
        return siblings, owners

    def _add(self, losses: dict[ObjectiveName, Tensor]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())

    def losses(self) -> dict[str, float]:
        """Return the mean of each loss term over all ranks."""
        found = {}
        for name in self.objective.objectives:
            count = self.paired if name == "contrastive" else self.masked
            found[str(name)] = self.world.sum_scalar(self.sums.get(name, 0.0)) / count
        return found

    def loss(self) -> float:
        """Return the sum of all loss terms."""
        return sum(self.losses().values())

    def parts(self) -> dict[str, float]:
        """Return the loss terms and the number of documents with fewer than two spans."""
        return {
            **self.losses(),
            "documents": self.world.sum_scalar(float(self.count)),
            "single_span_documents": self.world.sum_scalar(float(self.single)),
            "masked_tokens": self.masked,
        }


def _siblings(documents: Sequence[SampledDocument]) -> Siblings:
    pairs = Siblings([], [], [])
    place = 0
    for document in documents:
        if len(document.texts) == 2:
            first = len(pairs.places)
            pairs.places.extend((place, place + 1))
            pairs.siblings.extend((first + 1, first))
            pairs.owners.extend((document.owner, document.owner))
        place += len(document.texts)
    return pairs


def _ordered(chunks: Sequence[SpanMicroBatch], made: Sequence[Tensor]) -> Tensor:
    """Reorder rows to batch order."""
    stacked = torch.cat(list(made))
    places = torch.tensor([p for chunk in chunks for p in chunk.places], device=stacked.device)
    return stacked[torch.argsort(places)]
