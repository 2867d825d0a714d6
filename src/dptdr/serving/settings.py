"""Settings of a server; no torch."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dptdr.config.settings import Setting


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """Computation and limits of a server; options of ``dptdr serve``."""

    workers: Annotated[int, Setting("Worker processes.", min=1)] = 1
    threads: Annotated[
        int, Setting("Processor threads per worker; 0: all, shared by workers.", min=0)
    ] = 0
    prompt_memory_mb: Annotated[
        int,
        Setting("Prompts kept in memory per worker, in MB.", min=1, given_as="prompt_memory"),
    ] = 1024
    batch_tokens: Annotated[int, Setting("Maximum tokens per batch.", min=1)] = 4096
    queue_tokens: Annotated[
        int, Setting("Maximum tokens that wait before requests get 429.", min=1)
    ] = 400_000
    max_body_kb: Annotated[
        int, Setting("Longest request body, in kB.", min=1, given_as="max_body")
    ] = 8000
    max_texts: Annotated[int, Setting("Maximum texts per request.", min=1)] = 2048
    max_tokens: Annotated[
        int, Setting("Maximum tokens per request, texts cut to their task's limit.", min=1)
    ] = 300_000
    max_text_characters: Annotated[int, Setting("Longest text, in characters.", min=1)] = 200_000
    max_hits: Annotated[int, Setting("Maximum hits per search.", min=1)] = 1000
    receive_seconds: Annotated[
        float,
        Setting(
            "Seconds that a client may take to send headers, and then its body.",
            above=0,
            given_as="receive_timeout",
        ),
    ] = 30.0
    max_connections: Annotated[
        int,
        Setting("Maximum connections per worker; the oldest without a request goes first.", min=1),
    ] = 1000
    timeout_seconds: Annotated[
        float, Setting("Longest wait for vectors, in seconds.", above=0, given_as="timeout")
    ] = 60.0
    requests_per_second: Annotated[
        float,
        Setting("Requests per second and key, per worker; 0: no limit.", min=0, given_as="rate"),
    ] = 0.0
    task_requests_per_second: Annotated[
        float,
        Setting(
            "Requests per second and task, per worker; 0: no limit.", min=0, given_as="task_rate"
        ),
    ] = 0.0
    burst_requests: Annotated[
        int, Setting("Requests at once before a rate counts.", min=1, given_as="burst")
    ] = 20
    drain_seconds: Annotated[
        float,
        Setting(
            "Seconds to go on answering, /health at 503, after a stop signal.",
            min=0,
            given_as="drain",
        ),
    ] = 0.0
    stop_seconds: Annotated[
        float, Setting("Seconds to finish accepted requests when stopping.", above=0)
    ] = 30.0
    check_every: Annotated[
        int, Setting("Batches between self-checks of one row against it alone; 0: never.", min=0)
    ] = 500
    layout: Annotated[
        Literal["packed", "padded"] | None, Setting("Force a batch layout. Default: the faster.")
    ] = None

    @property
    def worker_threads(self) -> int:
        """Threads of each worker; 0 is torch's own choice."""
        if self.threads or self.workers == 1:
            return self.threads
        return max(1, (os.cpu_count() or 1) // self.workers)


@dataclass(frozen=True, kw_only=True)
class ServerSettings(ServerLimits):
    """All settings of a server.

    Args:
        backbone: Name or folder of the encoder.
        state_folder: Holds the catalogue and copies of bundles.
        tasks: Name and bundle of each task at start.
        tasks_folder: The only folder whose bundles and indexes requests may add; ``None``: none.
        indexes: Task (empty: every task that fits) and index folder.
        hybrid: Build BM25 in memory for indexes without one.
        cross_encoder: Name or folder of the model behind ``/rerank``.
        keys_file: API keys; ``None``: an open server.
        open_administration: Whether tasks may be changed without keys.
        hosts: Names of an open server, besides addresses and ``localhost``.
        onnx: Folder that ``dptdr export --int8`` wrote; computes in 8 bits.
    """

    backbone: str
    state_folder: Path
    tasks: tuple[tuple[str, Path], ...] = ()
    tasks_folder: Path | None = None
    indexes: tuple[tuple[str, Path], ...] = ()
    hybrid: bool = False
    cross_encoder: str | None = None
    keys_file: Path | None = None
    open_administration: bool = True
    hosts: tuple[str, ...] = ()
    onnx: Path | None = None
