"""The working folder of a training run: its checkpoints, log and resume state."""

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dptdr.errors import DataError, TrainingError
from dptdr.io.atomic import atomic_file, atomic_folder, read_json, write_json, writing
from dptdr.io.jsonkeys import unique_keys

Record: TypeAlias = Mapping[str, Any]
"""One log record, with a ``step`` and a ``kind``: step, dev, bare or health."""

CHECKSUM = "sha256"
"""Key of a file's checksum, in safetensors metadata or JSON."""

_START_OVER = "use --overwrite to start over"


class RunFolder:
    """Working files of a training run, kept beside its future bundle.

    ::

        run.json         settings and data of the run
        log.jsonl        one line per step, evaluation and health check
        checkpoints/     step-0000075.safetensors: trained parameters only
        last/            state.safetensors, state.json: resume state
        failed.json      step and batch of a non-finite loss

    Pretraining adds ``heads.safetensors``.
    """

    FILES = (
        *("run.json", "log.jsonl", "failed.json", "heads.safetensors", ".*.tmp"),
        *("checkpoints/step-*.safetensors", "checkpoints/.*.tmp", "last/state.*"),
        *(".last.*.tmp/state.*", ".last.old/state.*"),
    )
    """Patterns of these files, and of what a killed run leaves."""

    def __init__(self, path: Path, *, mirror: Callable[[Record], None] | None = None) -> None:
        self.path = Path(path)
        self._mirror = mirror
        self._opened = False

    @property
    def log_path(self) -> Path:
        """One JSON line per logged step and evaluation."""
        return self.path / "log.jsonl"

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Record the run's settings and data."""
        facts = json.loads(json.dumps(dict(identity)))
        write_json(self.path / "run.json", {**facts, CHECKSUM: _json_checksum(facts)})

    def forget_failure(self) -> None:
        """Remove an earlier attempt's report of a non-finite loss."""
        (self.path / "failed.json").unlink(missing_ok=True)

    def began(self) -> dict[str, Any] | None:
        """Return the record written by :meth:`begin`, or ``None`` if there is no run."""
        return self.identity() if (self.path / "run.json").is_file() else None

    def identity(self) -> dict[str, Any]:
        """Return the record written by :meth:`begin`.

        Raises:
            TrainingError: If there is no run in this folder, or its record is damaged.
        """
        path = self.path / "run.json"
        if not path.is_file():
            raise TrainingError(f"{self.path}: expected a training run with a run.json, found none")
        return _read_object(path)

    def checkpoint_path(self, step: int) -> Path:
        """Return the path of a checkpoint."""
        return self.path / "checkpoints" / f"step-{step:07d}.safetensors"

    def checkpoint_steps(self) -> list[int]:
        """Return the steps with a checkpoint."""
        found = (self.path / "checkpoints").glob("step-*.safetensors")
        return sorted(int(path.stem.removeprefix("step-")) for path in found)

    def save_checkpoint(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Write a checkpoint with the trained parameters only."""
        with atomic_file(self.checkpoint_path(step)) as handle:
            metadata = {CHECKSUM: tensor_checksum(state, about=self._about(step))}
            handle.write(safetensors.torch.save(dict(state), metadata=metadata))

    def load_checkpoint(self, step: int) -> dict[str, Tensor]:
        """Load a step's checkpoint.

        Raises:
            TrainingError: If there is none, or it is damaged.
        """
        path = self.checkpoint_path(step)
        if not path.is_file():
            steps = ", ".join(map(str, self.checkpoint_steps())) or "none"
            raise TrainingError(f"{self.path}: no checkpoint for step {step}; available: {steps}")
        return _read_tensors(path, about=self._about(step), plain=True)

    def _about(self, what: object) -> str:
        """Identify a file of this run, so that none of another step or run is taken for it."""
        began = self.began() or {}
        # A probe differs a little between machines.
        settings = {name: value for name, value in began.items() if name != "probe"}
        return f"{what} of {_json_checksum(settings)}"

    def drop_checkpoint(self, step: int) -> None:
        """Remove a checkpoint, such as a large one from full fine-tuning."""
        self.checkpoint_path(step).unlink(missing_ok=True)

    def save_state(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the resume state; the previous one remains until this is complete."""
        with atomic_folder(self.path / "last") as temporary:
            plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            about = self._about("last")
            metadata = {CHECKSUM: tensor_checksum(plain, about=about)}
            safetensors.torch.save_file(plain, temporary / "state.safetensors", metadata=metadata)
            checksum = _json_checksum({**facts, "about": about})
            write_json(temporary / "state.json", {**facts, CHECKSUM: checksum})

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Load the resume state, or ``None`` for a fresh run.

        Raises:
            TrainingError: If it is damaged.
        """
        last = self.path / "last"
        if not last.is_dir():
            return None
        about = self._about("last")
        facts = _read_object(last / "state.json", about=about)
        if facts.keys() != {"step", "history"}:
            raise TrainingError(f"{last / 'state.json'}: expected step and history; {_START_OVER}")
        return _read_tensors(last / "state.safetensors", about=about), facts

    def log(self, record: Record) -> None:
        """Append one record to the log."""
        line = json.dumps({**record, "crc": _crc(record)}, sort_keys=True) + "\n"
        with writing(self.log_path):
            if not self._opened:
                self._opened = True
                self.path.mkdir(parents=True, exist_ok=True)
                if self._ends_in_half_a_line():
                    line = "\n" + line
            with self.log_path.open("a", encoding="utf-8") as handle:
                handle.write(line)
        if self._mirror is not None:
            self._mirror(record)

    def _ends_in_half_a_line(self) -> bool:
        """Check whether the last line is incomplete."""
        if not self.log_path.is_file() or not self.log_path.stat().st_size:
            return False
        with self.log_path.open("rb") as handle:
            handle.seek(-1, 2)
            return handle.read() != b"\n"

    def records(self) -> list[dict[str, Any]]:
        """Return the log; if a step was logged again after a crash, the later record counts.

        Raises:
            TrainingError: If a record is damaged; names file and line.
        """
        if not self.log_path.is_file():
            return []
        found: dict[tuple[str, int], dict[str, Any]] = {}
        lines = self.log_path.read_bytes().splitlines()
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"}"):
                continue  # Truncated when the process was killed.
            try:
                record = json.loads(line, object_pairs_hook=unique_keys)
                crc = record.pop("crc", None)
                found[(str(record["kind"]), int(record["step"]))] = record
            except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
                record = None
            if record is None or crc not in (None, _crc(record)):
                raise TrainingError(
                    f"{self.log_path}, line {number}: the record is damaged; {_START_OVER}"
                )
        return [found[key] for key in sorted(found, key=lambda key: (key[1], key[0]))]

    def dev_history(self) -> dict[int, dict[str, float]]:
        """Return the dev measures by step.

        Raises:
            TrainingError: If there are none.
        """
        history = {
            int(record["step"]): {k: v for k, v in record.items() if isinstance(v, float)}
            for record in self.records()
            if record["kind"] == "dev"
        }
        if not history:
            raise TrainingError(
                f"{self.path}: expected a training run with dev measures, found none"
            )
        return history


def tensor_checksum(tensors: Mapping[str, Tensor], *, about: str = "") -> str:
    """Return the SHA-256 of tensors with their names, dtypes and shapes, and of a text."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_tensors(path: Path, *, about: str, plain: bool = False) -> dict[str, Tensor]:
    """Read a file of tensors and compare its checksum.

    Args:
        plain: Accept the file of an earlier version, without or with a checksum of the tensors.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise TrainingError(f"{path}: damaged ({error}); {_START_OVER}") from None
    said = metadata.get(CHECKSUM)
    earlier = plain and (not metadata or said == tensor_checksum(tensors))
    if not earlier and said != tensor_checksum(tensors, about=about):
        raise TrainingError(
            f"{path}: damaged, or of another step or run: its checksum does not match; "
            f"{_START_OVER}"
        )
    return tensors


def _read_object(path: Path, *, about: str | None = None) -> dict[str, Any]:
    """Read a JSON object and compare its checksum; without ``about``, it may have none."""
    try:
        value = read_json(path)
    except DataError as error:
        raise TrainingError(f"{error}; {_START_OVER}") from None
    if not isinstance(value, dict):
        raise TrainingError(f"{path}: expected a JSON object; {_START_OVER}")
    said = value.pop(CHECKSUM, None)
    checked = value if about is None else {**value, "about": about}
    if said != _json_checksum(checked) and (said is not None or about is not None):
        raise TrainingError(
            f"{path}: damaged, or of another run: its checksum does not match; {_START_OVER}"
        )
    return value


def _json_checksum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(value), sort_keys=True).encode()).hexdigest()


def _crc(record: Record) -> str:
    return f"{zlib.crc32(json.dumps(dict(record), sort_keys=True).encode()):08x}"


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Return an optimizer's state as named tensors."""
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
    """Restore the state returned by :func:`optimizer_tensors`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, parameter in zip(names, parameters, strict=True):
        prefix = f"optimizer|{name}|"
        state = {
            # Optimizers keep step counters on the CPU.
            key.removeprefix(prefix): value.clone().to(parameter.device if value.dim() else "cpu")
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
        if state:
            optimizer.state[parameter] = state
