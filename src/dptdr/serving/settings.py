"""Everything a server is told when it starts; passed to worker processes as a file. No torch."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from dptdr.errors import ConfigError
from dptdr.io.atomic import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of a server.

    Args:
        backbone: Name or folder of the encoder.
        state_folder: Where the catalogue and copies of bundles lie.
        tasks: Name and bundle of each task to start with.
        tasks_folder: The only folder that requests may name bundles in; none: no adding.
        indexes: Task name (empty: any task that fits) and index folder.
        hybrid: Whether to build a BM25 index beside each index, for hybrid search.
        keys_file: API keys; none: an open server.
        open_administration: Whether tasks may be changed without keys.
        workers: Worker processes.
        threads: Processor threads per worker, 0 for torch's own choice.
        prompt_memory_bytes: Most bytes of prompts in memory, per worker.
        batch_tokens: Most tokens per batch.
        queue_tokens: Most tokens that may wait.
        max_body_bytes: Longest request body.
        max_texts: Most texts per request.
        max_tokens: Most tokens per request, texts cut to their task's limit.
        max_text_characters: Longest text.
        max_hits: Most hits per search.
        receive_seconds: How long a client may take to send headers, and then its body.
        max_connections: Most connections, per worker; the oldest without a request goes first.
        hosts: Names under which an open server is reached, beside addresses and ``localhost``.
        timeout_seconds: How long a request may wait for its vectors.
        requests_per_second: Most requests per second and key, 0 for no limit; per worker.
        task_requests_per_second: Most requests per second and task, 0 for no limit; per worker.
        burst_requests: Requests that may come at once before a rate counts.
        drain_seconds: How long to go on answering, with ``/health`` at 503, after a stop signal.
        stop_seconds: How long to finish what was taken.
        check_every: After so many batches one row is computed again alone and compared.
        layout: ``packed`` or ``padded`` to force one.
        onnx: Folder that ``dptdr export`` wrote, to compute with ONNX Runtime in 8 bits.
    """

    backbone: str
    state_folder: Path
    tasks: tuple[tuple[str, Path], ...] = ()
    tasks_folder: Path | None = None
    indexes: tuple[tuple[str, Path], ...] = ()
    hybrid: bool = False
    keys_file: Path | None = None
    open_administration: bool = True
    workers: int = 1
    threads: int = 0
    prompt_memory_bytes: int = 1 << 30
    batch_tokens: int = 4096
    queue_tokens: int = 400_000
    max_body_bytes: int = 8_000_000
    max_texts: int = 2048
    max_tokens: int = 300_000
    max_text_characters: int = 200_000
    max_hits: int = 1000
    receive_seconds: float = 30.0
    max_connections: int = 1000
    hosts: tuple[str, ...] = ()
    timeout_seconds: float = 60.0
    requests_per_second: float = 0.0
    task_requests_per_second: float = 0.0
    burst_requests: int = 20
    drain_seconds: float = 0.0
    stop_seconds: float = 30.0
    check_every: int = 500
    layout: Literal["packed", "padded"] | None = None
    onnx: Path | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense, all at once."""
        problems = []
        for name in (
            "workers",
            "batch_tokens",
            "queue_tokens",
            "max_texts",
            "max_tokens",
            "burst_requests",
            "max_connections",
        ):
            if getattr(self, name) < 1:
                problems.append(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in (
            "timeout_seconds",
            "stop_seconds",
            "receive_seconds",
            "max_body_bytes",
            "prompt_memory_bytes",
        ):
            if getattr(self, name) <= 0:
                problems.append(f"{name}: expected more than 0, got {getattr(self, name)}")
        names = [name for name, _ in self.tasks]
        for name in sorted({name for name in names if names.count(name) > 1}):
            problems.append(f"task '{name}' is given twice; name them apart as NAME=FOLDER")
        if problems:
            raise ConfigError("; ".join(problems))

    def write(self, path: Path) -> None:
        """Write the settings for a worker process."""
        values: dict[str, Any] = {
            key: _plain(value) for key, value in asdict(self).items() if value is not None
        }
        write_json(path, values)

    @classmethod
    def read(cls, path: Path) -> "ServerSettings":
        """Read what :meth:`write` wrote."""
        values = read_json(path)
        for name in ("state_folder", "tasks_folder", "keys_file", "onnx"):
            if name in values:
                values[name] = Path(values[name])
        for name in ("tasks", "indexes"):
            values[name] = tuple((key, Path(folder)) for key, folder in values[name])
        values["hosts"] = tuple(values["hosts"])
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.resolve())
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
