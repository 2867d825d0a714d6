"""The working folder of a training run: checkpoints to choose from, a state to resume from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dptdr.errors import TrainingError
from dptdr.files import atomic_file, atomic_folder, read_json, recover_folder, write_json


class RunFolder:
    """Files of one training run, beside the bundle that it will write.

    Args:
        path: The folder; made when first written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @property
    def log_path(self) -> Path:
        """One JSON line per logged step and evaluation."""
        return self.path / "log.jsonl"

    def checkpoint_path(self, step: int) -> Path:
        """Return where a checkpoint lies."""
        return self.path / "checkpoints" / f"step-{step:07d}.safetensors"

    def save_checkpoint(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Write a checkpoint: what was trained, nothing else."""
        with atomic_file(self.checkpoint_path(step)) as handle:
            handle.write(safetensors.torch.save(dict(state)))

    def load_checkpoint(self, step: int) -> dict[str, Tensor]:
        """Read a checkpoint."""
        state: dict[str, Tensor] = safetensors.torch.load_file(self.checkpoint_path(step))
        return state

    def drop_checkpoint(self, step: int) -> None:
        """Remove a checkpoint that is too large to keep (full fine-tuning)."""
        self.checkpoint_path(step).unlink(missing_ok=True)

    def save_state(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write what resuming needs; the state before stays until this one is complete."""
        with atomic_folder(self.path / "last") as temporary:
            safetensors.torch.save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                temporary / "state.safetensors",
            )
            write_json(temporary / "state.json", dict(facts))

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return what :meth:`save_state` wrote, or ``None`` for a fresh run."""
        last = self.path / "last"
        recover_folder(last)
        if not (last / "state.json").is_file():
            return None
        tensors: dict[str, Tensor] = safetensors.torch.load_file(last / "state.safetensors")
        return tensors, dict(read_json(last / "state.json"))

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one record to the log."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(dict(record), sort_keys=True) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """Return the log; a step that was done twice around a crash counts once, the later one."""
        if not self.log_path.is_file():
            return []
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for line in self.log_path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # The line that a kill cut short.
            found[(record["kind"], record["step"])] = record
        return [found[key] for key in sorted(found, key=lambda key: (key[1], key[0]))]


def check_same_run(facts: Mapping[str, Any], identity: Mapping[str, Any], *, path: Path) -> None:
    """Refuse to resume a run that was started with other settings.

    Raises:
        TrainingError: Listing each difference.
    """
    before = facts.get("identity", {})
    differences = [
        f"{key}: was {before.get(key)!r}, is {identity.get(key)!r}"
        for key in sorted(set(before) | set(identity))
        if before.get(key) != identity.get(key)
    ]
    if differences:
        raise TrainingError(
            f"{path}: cannot resume, the run was started otherwise ({'; '.join(differences)}); "
            "use the same settings, or train into another folder"
        )


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Return an optimiser's state as named tensors."""
    tensors = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, parameter in zip(names, parameters, strict=True):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer|{name}|{key}"] = (
                value if isinstance(value, Tensor) else torch.tensor(value)
            )
    return tensors


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what :func:`optimizer_tensors` returned."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, parameter in zip(names, parameters, strict=True):
        prefix = f"optimizer|{name}|"
        state = {
            key.removeprefix(prefix): value.clone()
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
        if state:
            optimizer.state[parameter] = state
