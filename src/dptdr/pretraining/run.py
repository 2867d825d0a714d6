"""Run a pretraining, from building its parts to writing its result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dptdr.config.methods import DeepPromptConfig, EmptyConfig, settings_of
from dptdr.config.pretraining import (
    DEFAULT_TEMPERATURE,
    FUSED,
    OBJECTIVE_NAMES,
    ObjectiveName,
    PretrainingConfig,
)
from dptdr.errors import TrainingError
from dptdr.io.atomic import atomic_file, sha256_file
from dptdr.io.beir import BeirFolder
from dptdr.model import Backbone, Encoder, Method, MethodFactory, save_task
from dptdr.pretraining.document_sampling import Documents, Reader
from dptdr.pretraining.objective import PretrainingObjective
from dptdr.pretraining.saved_heads import (
    BuiltHeads,
    build_heads,
    copy_into,
    has_mlm_head,
    head_tensors,
    read_head_file,
)
from dptdr.pretraining.saving import save_backbone
from dptdr.training.checkpoints import RunFolder
from dptdr.training.distributed import ProcessGroup
from dptdr.training.loop import Clock, ProgressCallback, TrainState, best_step, train_loop
from dptdr.training.train import rows_digest, set_training_mode

_INITIALISATION_TEXTS = 128

Note: TypeAlias = Callable[[str], None]
"""Called with one-line messages about the preparation, which may take a while."""


def chosen_objectives(
    config: PretrainingConfig, backbone: Backbone, *, prompt_only: bool
) -> tuple[ObjectiveName, ...]:
    """Return the loss terms, by default those suitable for the encoder.

    A prompt cannot learn from a new, untrained head, so masked words are used for a prompt only if
    the encoder comes with a head.
    """
    if config.objectives:
        return tuple(name for name in OBJECTIVE_NAMES if name in config.objectives)
    if not prompt_only:
        return tuple(name for name in OBJECTIVE_NAMES if name not in FUSED)
    masks = backbone.tokenizer.mask_token_id is not None
    return ("mlm", "contrastive") if masks and has_mlm_head(backbone) else ("contrastive",)


@dataclass(frozen=True, kw_only=True)
class PretrainingRun:
    """The parts of a run."""

    out: Path
    config: PretrainingConfig
    method: Method
    built: BuiltHeads
    objective: PretrainingObjective
    folder: RunFolder
    identity: dict[str, Any]
    facts: dict[str, Any]
    world: ProcessGroup
    keep_head: bool

    @classmethod
    def prepare(
        cls,
        folder: BeirFolder,
        out: Path,
        *,
        backbone: Backbone,
        config: PretrainingConfig,
        prompt: DeepPromptConfig | None,
        start_rows: Mapping[str, Tensor] | None,
        world: ProcessGroup,
        keep_head: bool,
    ) -> "PretrainingRun":
        """Build and validate all parts."""
        objectives = chosen_objectives(config, backbone, prompt_only=prompt is not None)
        documents = Documents(folder, config)
        config = config.with_steps(len(documents.store))
        masks = bool({"mlm", "condenser"} & set(objectives))
        # Do the cheap checks before copying the encoder.
        reader = Reader(backbone, documents, config, masks=masks)
        _check_pairs(reader, folder, objectives=objectives)
        method = _method(backbone, documents, config, prompt=prompt, rows=start_rows)
        built = build_heads(
            method.backbone,
            config,
            objectives=objectives,
            frozen=prompt is not None,
        )
        temperature = config.temperature or (
            DEFAULT_TEMPERATURE if backbone.pooling.normalise else 1.0
        )
        run_folder = RunFolder(out.parent / f"{out.name}.pretraining")
        objective = PretrainingObjective(
            method,
            reader,
            built.heads,
            config,
            objectives=objectives,
            temperature=temperature,
            world=world,
            on_parts=_part_log(run_folder) if world.is_first else None,
        )
        facts = {
            "data": folder.name,
            "corpus_sha256": sha256_file(folder.corpus_path),
            "documents": len(documents.store),
            "dev_documents": len(documents.dev),
        }
        identity = {
            **config.identity(),
            "objectives": list(objectives),
            "temperature": temperature,
            "learning_rate": config.rate_for(method.name),
            "method": method.name,
            "method_settings": settings_of(method.config),
            "mlm_head": built.mlm,
            "condenser_head": built.condenser,
            "backbone_fingerprint": backbone.fingerprint,
            "probe": list(backbone.probe),
            "world_size": world.size,
            "data": facts,
            **({} if start_rows is None else {"start_rows": rows_digest(start_rows)}),
        }
        return cls(
            out=out,
            config=config,
            method=method,
            built=built,
            objective=objective,
            folder=run_folder,
            identity=identity,
            facts=facts,
            world=world,
            keep_head=keep_head,
        )

    def train(
        self, *, keep_all: bool, progress: ProgressCallback | None, note: Note | None, clock: Clock
    ) -> dict[str, Any] | None:
        """Train, or resume an earlier run, and write the result."""
        first = self.world.is_first
        self.begin(note=note if first else None)
        history = train_loop(
            self.objective,
            TrainState(
                self.objective.parameters(),
                self.config,
                rate=self.config.rate_for(self.method.name),
            ),
            state=self.state,
            evaluate=self.evaluate,
            folder=self.folder,
            world=self.world,
            keep=None if keep_all else best_step,
            progress=progress,
            clock=clock,
        )
        return self.finish(history) if first else None

    def begin(self, *, note: Note | None) -> None:
        """Record the run, warm up new heads, and evaluate the start."""
        if self.world.is_first:
            self.folder.begin(self.identity)
        self.world.barrier()
        self._warm_up(note=note)
        set_training_mode(self.method)
        if self.world.is_first and not log_records(self.folder, "bare"):
            measures = self.evaluate(bare=True)
            self.folder.log({"kind": "bare", "step": 0, **measures})

    def _warm_up(self, *, note: Note | None) -> None:
        """Train new heads alone, or load them when resuming."""
        heads = self.built.heads
        steps = self.config.warmup_steps_of_heads
        # With a pretrained masked-language head, new Condenser layers train with the encoder, as in
        # the paper; a new one would first feed it noise. When training a prompt, heads are frozen.
        frozen = not heads.trained
        if heads.new and steps and (frozen or self.built.mlm == "new"):
            done = self.folder.path / "heads.safetensors"
            if done.is_file():
                self._load_heads(done)
            else:
                if note is not None:
                    note(_warm_up_line(self.built, steps=steps))
                self._train_heads(heads.new, steps=steps)
                if self.world.is_first:
                    self._save_heads(done)
                self.world.barrier()
        for parameter in heads.new.values():
            parameter.grad = None
            parameter.requires_grad = not frozen

    def _train_heads(self, new: Mapping[str, torch.nn.Parameter], *, steps: int) -> None:
        self.world.broadcast(new.values())
        optimizer = torch.optim.AdamW(new.values(), lr=self.config.head_learning_rate)
        for step in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss = self.objective.warm_up(step)
            # Increase over the first tenth, then decrease.
            rise = (step + 1) / max(1, steps // 10)
            for group in optimizer.param_groups:
                group["lr"] = self.config.head_learning_rate * min(rise, 1.0 - step / steps)
            optimizer.step()
            if self.world.is_first:
                self.folder.log({"kind": "head", "step": step + 1, "loss": loss})

    def _save_heads(self, path: Path) -> None:
        import safetensors.torch

        tensors, form = head_tensors(self.built.heads)
        with atomic_file(path) as handle:
            handle.write(safetensors.torch.save(tensors, metadata=form))

    def _load_heads(self, path: Path) -> None:
        saved = read_head_file(path)
        heads = self.built.heads
        if heads.mlm is not None:
            copy_into(heads.mlm.own_parameters(), saved.part("mlm"), path=path)
        if heads.condenser is not None:
            own = dict(heads.condenser.named_parameters())
            copy_into(own, saved.part("condenser"), path=path)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors for a checkpoint."""
        heads = {n: p.detach().cpu().contiguous() for n, p in self.built.heads.trained.items()}
        return {**self.method.state(), **heads}

    def evaluate(self, *, bare: bool = False) -> dict[str, float]:
        """Evaluate the current parameters, or the bare encoder, on the held-out documents."""
        self.method.module.eval()
        try:
            return self.objective.measure(bare=bare)
        finally:
            set_training_mode(self.method)

    def finish(self, history: dict[int, dict[str, float]]) -> dict[str, Any]:
        """Load the best checkpoint, write the backbone or task, and return the result."""
        best = best_step(history, measure=self.config.dev_measure)
        self._load(best)
        prompt_only = self.method.name != "full"
        facts = {**self.identity, "best_step": best, "bare": self._bare(), **self._counts()}
        if prompt_only:
            self._save_task(facts, history[best])
            fingerprint = self.method.base_fingerprint
        else:
            backbone = self.method.backbone
            backbone.forget_fingerprint()
            fingerprint = backbone.fingerprint
            facts |= {"backbone": backbone.name, "fingerprint": fingerprint, "dev": history[best]}
            heads = self.built.heads if self.keep_head and self.built.mlm is not None else None
            save_backbone(self.out, backbone, facts=facts, heads=heads)
        steps = log_records(self.folder, "step")
        parts = log_records(self.folder, "parts")
        warmup = [float(record["loss"]) for record in log_records(self.folder, "head")]
        return {
            "prompt_only": prompt_only,
            "objectives": self.objective.objectives,
            "temperature": self.objective.temperature,
            "history": {str(step): measures for step, measures in history.items()},
            "bare": self._bare(),
            "best_step": best,
            "losses": (self._losses(parts[0]), self._losses(parts[-1])),
            "mlm_head": self.built.mlm,
            "condenser_head": self.built.condenser,
            "head_warmup": (warmup[0], warmup[-1]) if warmup else (),
            "seconds": sum(record["seconds"] for record in steps),
            "tokens": sum(record["tokens"] for record in steps),
            "fingerprint": fingerprint,
            "documents": self._counts()["documents_drawn"],
            "single_span_documents": self._counts()["single_span_documents_drawn"],
        }

    def _load(self, step: int) -> None:
        state = self.folder.load_checkpoint(step)
        heads = self.built.heads.trained
        self.method.load({n: t for n, t in state.items() if n not in heads})
        copy_into(
            heads,
            {n: t for n, t in state.items() if n in heads},
            path=self.folder.checkpoint_path(step),
        )
        self.method.module.eval()

    def _save_task(self, facts: dict[str, Any], measures: dict[str, float]) -> None:
        elsewhere = ("method_settings", "bare", "data", "backbone_fingerprint")
        training = {k: v for k, v in facts.items() if k not in elsewhere}
        encoder = Encoder(self.method.backbone, method=self.method, name=self.out.name)
        shown = {f"held-out {name}": value for name, value in measures.items()}
        shown |= {f"bare backbone held-out {name}": v for name, v in self._bare().items()}
        save_task(
            self.out,
            encoder,
            name=self.out.name,
            training={"pretraining": "without labels", **self.facts, **training},
            measures=shown,
        )

    def _bare(self) -> dict[str, float]:
        record = log_records(self.folder, "bare")[0]
        return {k: v for k, v in record.items() if isinstance(v, float)}

    def _counts(self) -> dict[str, int]:
        parts = log_records(self.folder, "parts")
        return {
            "documents_drawn": round(sum(record["documents"] for record in parts)),
            "single_span_documents_drawn": round(
                sum(record["single_span_documents"] for record in parts)
            ),
        }

    def _losses(self, record: Mapping[str, Any]) -> dict[str, float]:
        return {str(name): float(record[name]) for name in self.objective.objectives}


def _warm_up_line(built: BuiltHeads, *, steps: int) -> str:
    found = {"masked-language head": built.mlm, "Condenser layers": built.condenser}
    new = " and ".join(name for name, origin in found.items() if origin == "new")
    return (
        f"{new} not in the checkpoint: training new ones alone first (--head-warmup-steps {steps})"
    )


def _part_log(folder: RunFolder) -> Any:
    def log(step: int, parts: dict[str, float]) -> None:
        folder.log({"kind": "parts", "step": step + 1, **parts})

    return log


def log_records(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    """Return a run's log records of one kind."""
    return [record for record in folder.records() if record["kind"] == kind]


def _check_pairs(
    reader: Reader, folder: BeirFolder, *, objectives: Sequence[ObjectiveName]
) -> None:
    if "contrastive" in objectives and not reader.has_pairs():
        least = 2 * reader.config.min_span_tokens
        raise TrainingError(
            f"{folder.path}: objective contrastive needs documents with two different spans, at "
            f"least {least} tokens in all, but none of the first {reader.looked_at:,} has them; "
            "lower --min-span-tokens, or use --objectives mlm,condenser"
        )


def _method(
    backbone: Backbone,
    documents: Documents,
    config: PretrainingConfig,
    *,
    prompt: DeepPromptConfig | None,
    rows: Mapping[str, Tensor] | None,
) -> Method:
    if prompt is None:
        return MethodFactory().build("full", backbone, EmptyConfig(), seed=config.seed)
    some = [int(row) for row in documents.train[:_INITIALISATION_TEXTS]]
    texts = [passage.content for passage in documents.passages(some)]
    factory = MethodFactory(query_texts=texts, passage_texts=texts, rows=rows)
    return factory.build("deep-prompt", backbone, prompt, seed=config.seed)
