"""Training variants that were tried for the default recipe, behind the library's own objective.

What is tried here and not part of ``dptdr train`` did not earn its place there; the figures are in
``results/exploration.md``.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dptdr.config.methods import config_from
from dptdr.model import Encoder, MethodFactory
from dptdr.training.objective import ContrastiveObjective

STEPPERS = ("adamw", "lion", "muon", "soap")


# --- what is trained -----------------------------------------------------------------------------


class WithHead:
    """A method whose vectors pass a low-rank residual head, or whose encoder is tuned as well.

    Args:
        method: Gives the vectors; usually a deep prompt.
        extra: Further parameters by name, already part of the encoder.
        rank: Rank of the head; 0 for none. It starts as the identity.
    """

    def __init__(self, method: Any, *, extra: Mapping[str, nn.Parameter], rank: int) -> None:
        self.method = method
        self.name = method.name
        self.config = method.config
        self.backbone = method.backbone
        self.base_fingerprint = method.base_fingerprint
        self.extra = dict(extra)
        self.head: nn.Sequential | None = None
        if rank:
            dim = method.backbone.dim
            self.head = nn.Sequential(
                nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim, bias=False)
            ).to(method.backbone.device)
            nn.init.normal_(self.head[0].weight, std=dim**-0.5)
            nn.init.zeros_(self.head[1].weight)
        self.module = nn.ModuleDict({"method": method.module})

    def vectors(self, tokens: Any, *, side: str, observer: Any = None) -> Tensor:
        found: Tensor = self.method.vectors(tokens, side=side, observer=observer)
        if self.head is None:
            return found
        return functional.normalize(found + self.head(found.float()), dim=-1)

    def changes(self, side: str) -> bool:
        return True

    def trained(self) -> dict[str, nn.Parameter]:
        head = {} if self.head is None else dict(self.head.named_parameters())
        return {
            **self.method.trained(),
            **{f"extra.{name}": parameter for name, parameter in self.extra.items()},
            **{f"head.{name}": parameter for name, parameter in head.items()},
        }

    def state(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.trained().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.trained().items():
                parameter.copy_(state[name])


def build(
    backbone: Any, data: Any, system: str, settings: dict[str, Any], *, seed: int, extra: Any
) -> Any:
    """Return a method: one of the library's, PEFT's prefix, or a mixture.

    Args:
        backbone: The frozen encoder.
        data: What ``load_data`` returns.
        system: Name of the method, or ``peft-prefix``.
        settings: Its settings.
        seed: Decides its start.
        extra: Options of this module: ``offset`` (how far the start's logits are lowered),
            ``beside`` (``bitfit`` or ``lora`` with ``beside_settings``), ``head`` (rank),
            ``rows`` (another task's).
    """
    if system == "peft-prefix":
        from peft_prefix import PeftPrefix

        return PeftPrefix(backbone, prompt_length=settings.get("prompt_length", 16), seed=seed)
    name, config = config_from(system, settings)
    factory = MethodFactory(
        query_texts=data.query_texts, passage_texts=data.passage_texts, rows=extra.get("rows")
    )
    beside: dict[str, nn.Parameter] = {}
    if extra.get("beside"):
        other, other_config = config_from(extra["beside"], extra.get("beside_settings", {}))
        weights = factory.build(other, backbone, other_config, seed=seed)
        beside = weights.trained()
        backbone = weights.backbone
    method: Any = factory.build(name, backbone, config, seed=seed)
    if extra.get("offset"):
        lower_logits(method, data.query_texts + data.passage_texts, by=extra["offset"])
    if beside or extra.get("head"):
        torch.manual_seed(seed)
        method = WithHead(method, extra=beside, rank=extra.get("head", 0))
    return method


def lower_logits(method: Any, texts: list[str], *, by: float) -> None:
    """Move a prompt's keys against the mean query, so that it starts with less attention.

    Each row's logit falls by ``by`` for the mean query of its layer and head: near the bare
    encoder, without a parameter that serving would have to know.
    """
    backbone = method.backbone
    sums: dict[int, Tensor] = {}
    count = 0
    factor = 1.0

    def observe(layer: int, query: Tensor, *rest: Any) -> None:
        nonlocal factor
        factor = rest[-1]
        chosen = query.transpose(1, 2)[tokens.mask.bool()].float()
        sums[layer] = sums.get(layer, 0.0) + chosen.sum(dim=0)

    with torch.no_grad():
        for start in range(0, min(len(texts), 128), 32):
            ids = backbone.tokenize(texts[start : start + 32], side="query", max_tokens=64)
            tokens = backbone.pad(ids)
            count += int(tokens.mask.sum())
            backbone.vectors(tokens, observer=observe)
        for prompt in method.module.values():
            for layer, total in sums.items():
                mean = total / count
                shift = by / factor * mean / mean.square().sum(dim=-1, keepdim=True)
                prompt.keys[layer] -= shift[:, None, :]


# --- how it is trained ---------------------------------------------------------------------------


class Lion(torch.optim.Optimizer):
    """Sign of an interpolated momentum (Chen et al., arXiv 2302.06675)."""

    def __init__(self, groups: Any, lr: float) -> None:
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                p.add_(mean.lerp(p.grad, 0.1).sign(), alpha=-group["lr"])
                mean.lerp_(p.grad, 0.01)


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal per layer: rows of a prompt times heads and width."""

    def __init__(self, groups: Any, lr: float) -> None:
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 0.1)
                layers, heads, rows, width = p.shape
                flat = p.grad.lerp(mean, 0.9).permute(0, 2, 1, 3).reshape(layers, rows, -1)
                u, _, v = torch.linalg.svd(flat, full_matrices=False)
                made = (u @ v * math.sqrt(flat.shape[-1])).reshape(layers, rows, heads, width)
                p.add_(made.permute(0, 2, 1, 3), alpha=-group["lr"])


def change_trainable(trainable: Any, *, extra: Any, rate: float) -> None:
    """Exchange the optimiser, or give some parameters a rate of their own."""
    if extra.get("betas"):
        for group in trainable.optimizer.param_groups:
            group["betas"] = tuple(extra["betas"])
    own = extra.get("extra_rate")
    if own:
        group = trainable.optimizer.param_groups[0]
        names = [n for n in trainable.parameters if n.startswith(("extra.", "head."))]
        chosen = [trainable.parameters[name] for name in names]
        group["params"] = [p for p in group["params"] if all(p is not q for q in chosen)]
        trainable.optimizer.add_param_group({"params": chosen, "lr": own})
        trainable.rates.append(own)
    kind = extra.get("optimiser", "adamw")
    if kind == "adamw":
        return
    groups = [{"params": g["params"], "lr": g["lr"]} for g in trainable.optimizer.param_groups]
    if kind == "soap":
        from pytorch_optimizer import SOAP

        trainable.optimizer = SOAP(groups, lr=rate, weight_decay=0.0, precondition_frequency=5)
    else:
        trainable.optimizer = {"lion": Lion, "muon": Muon}[kind](groups, lr=rate)


def layer_scaled(update: Callable[[int], None], parameters: Any, *, extra: Any) -> Any:
    """Return an update whose size falls or rises with the layer: ``layer_rates`` first, last."""
    first, last = extra["layer_rates"]
    chosen = [p for n, p in parameters.items() if n.rsplit(".", 1)[-1] in ("keys", "values")]

    def scaled(step: int) -> None:
        before = [p.detach().clone() for p in chosen]
        update(step)
        with torch.no_grad():
            for p, old in zip(chosen, before, strict=True):
                factors = torch.logspace(
                    math.log10(first), math.log10(last), p.shape[0], device=p.device
                )
                p.copy_(old + (p - old) * factors.view(-1, 1, 1, 1))

    return scaled


class TaughtObjective(ContrastiveObjective):
    """The contrastive objective with a teacher's vectors, or with a learned temperature.

    Args:
        teacher: Vector of each text, by side and text; the batch's own score matrix is taught.
        teacher_weight: Share of the teacher's Kullback-Leibler term.
        learned: Log factor on the temperature, trained.
    """

    def __init__(
        self,
        *arguments: Any,
        teacher: Mapping[tuple[str, str], Tensor] | None = None,
        teacher_weight: float = 0.5,
        learned: nn.Parameter | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        sharing = getattr(self.method.config, "sharing", "tied")
        pooling = self.method.backbone.pooling
        self.at_once = sharing == "tied" and pooling.query_prefix == pooling.passage_prefix
        self._made: Tensor | None = None
        self._second: Any = None
        self.teacher = teacher
        self.teacher_weight = teacher_weight
        self.learned = learned
        self.start = self.temperature

    def pieces(self, batch: Any) -> list[Any]:
        found = super().pieces(batch)
        two = [piece.side for piece in found] == ["query", "passage"]
        self._second = found[1] if self.at_once and two else None
        return found

    def _encode(self, piece: Any) -> Tensor:
        """Encode queries and passages in one pass where both meet the same weights.

        A small encoder on a GPU waits for launches: half as many take half the time.
        """
        if self._second is None:
            return super()._encode(piece)
        if piece is self._second:
            assert self._made is not None
            made, self._made = self._made, None
            return made
        both = piece._replace(rows=[*piece.rows, *self._second.rows])
        made = super()._encode(both)
        self._made = made[len(piece.rows) :]
        return made[: len(piece.rows)]

    def _loss(self, batch: Any, pieces: Any, vectors: Any) -> Tensor:
        from dptdr.training.objective import _in_order

        if self.learned is not None:
            self.temperature = self.start * self.learned.exp()  # type: ignore[assignment]
        loss = super()._loss(batch, pieces, vectors)
        if self.teacher is None:
            return loss
        queries = _in_order(pieces, vectors, side="query")
        passages = _in_order(pieces, vectors, side="passage")
        taught = torch.stack([self.teacher["query", text] for text in batch.queries])
        known = torch.stack([self.teacher["passage", text] for text in batch.passages])
        goal = (taught @ known.T / self.start).softmax(dim=-1)
        made = (queries @ passages.T / self.start).log_softmax(dim=-1)
        term = functional.kl_div(made, goal, reduction="batchmean")
        return (1.0 - self.teacher_weight) * loss + self.teacher_weight * term


def teacher_vectors(encoder: Encoder, groups: Any) -> dict[tuple[str, str], Tensor]:
    """Return the vectors of all training texts."""
    chosen = [groups[item] for item in range(len(groups))]
    queries = list(dict.fromkeys(group.query for group in chosen))
    passages = list(
        dict.fromkeys(text for group in chosen for text in (*group.positives, *group.negatives))
    )
    device = encoder.backbone.device
    found = {}
    made = torch.from_numpy(encoder.encode_queries(queries)).to(device)
    found.update({("query", text): made[i] for i, text in enumerate(queries)})
    made = torch.from_numpy(encoder.encode_passages(passages)).to(device)
    found.update({("passage", text): made[i] for i, text in enumerate(passages)})
    return found
