"""Server settings. Does not import torch."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dptdr.config.settings import Setting


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """Compute settings and limits of a server; these are options of ``dptdr serve``."""

    workers: Annotated[int, Setting("Worker processes.", min=1)] = 1
    threads: Annotated[
        int,
        Setting("CPU threads per worker; 0: all cores, divided among workers.", min=0, max=1024),
    ] = 0
    prompt_memory_mb: Annotated[
        int,
        Setting("Prompt cache per worker, in MB.", min=1, given_as="prompt_memory"),
    ] = 1024
    batch_tokens: Annotated[int, Setting("Maximum tokens per batch.", min=1)] = 4096
    queue_tokens: Annotated[
        int, Setting("Maximum queued tokens before requests get 429.", min=1)
    ] = 400_000
    max_body_kb: Annotated[
        int, Setting("Maximum request body, in kB.", min=1, given_as="max_body")
    ] = 8000
    max_texts: Annotated[int, Setting("Maximum texts per request.", min=1)] = 2048
    max_tokens: Annotated[int, Setting("Maximum tokens per request, after truncation.", min=1)] = (
        300_000
    )
    max_text_characters: Annotated[int, Setting("Maximum characters per text.", min=1)] = 200_000
    max_hits: Annotated[int, Setting("Maximum hits per search.", min=1)] = 1000
    receive_seconds: Annotated[
        float,
        Setting(
            "Timeout for receiving headers, and again for the body, in seconds.",
            above=0,
            given_as="receive_timeout",
        ),
    ] = 30.0
    max_connections: Annotated[
        int,
        Setting("Maximum connections per worker; the oldest idle one is closed first.", min=1),
    ] = 1000
    timeout_seconds: Annotated[
        float, Setting("Timeout for computing vectors, in seconds.", above=0, given_as="timeout")
    ] = 60.0
    requests_per_second: Annotated[
        float,
        Setting("Requests per second per key and worker; 0: no limit.", min=0, given_as="rate"),
    ] = 0.0
    task_requests_per_second: Annotated[
        float,
        Setting(
            "Requests per second per task and worker; 0: no limit.", min=0, given_as="task_rate"
        ),
    ] = 0.0
    burst_requests: Annotated[
        int, Setting("Requests allowed at once before rate limits apply.", min=1, given_as="burst")
    ] = 20
    drain_seconds: Annotated[
        float,
        Setting(
            "Seconds to keep serving after a stop signal, with /health at 503; 0: refuse new "
            "requests at once.",
            min=0,
            was=("drain",),
        ),
    ] = 0.0
    stop_seconds: Annotated[
        float, Setting("Seconds to finish accepted requests when stopping.", above=0)
    ] = 30.0
    check_every: Annotated[
        int,
        Setting(
            "Batches between self-checks of one row; 0: never.",
            min=0,
            given_as="self_check_interval",
        ),
    ] = 500
    layout: Annotated[
        Literal["packed", "padded"] | None,
        Setting("Force a batch layout. Default: the faster one."),
    ] = None

    @property
    def worker_threads(self) -> int:
        """CPU threads per worker; 0 for torch's default."""
        if self.threads or self.workers == 1:
            return self.threads
        return max(1, (os.cpu_count() or 1) // self.workers)


@dataclass(frozen=True, kw_only=True)
class ServerSettings(ServerLimits):
    """All settings of a server.

    Args:
        backbone: Name or folder of the encoder.
        state_folder: Folder for the catalogue and copies of bundles.
        tasks: Name and bundle of each initial task.
        tasks_folder: Folder from which requests may add bundles and indexes; ``None`` forbids it.
        indexes: Pairs of task (empty for every matching task) and index folder.
        index_keys: Hash of each index, so that all workers open the same ones.
        hybrid: Build BM25 in memory for indexes without one.
        cross_encoder: Name or folder of the model behind ``/rerank``.
        keys_file: API keys; ``None`` for an open server.
        open_administration: Allow changes to tasks without keys.
        hosts: Host names of an open server, besides IP addresses and ``localhost``.
        start: Identifies a start of the server; its first worker adds the tasks.
        onnx: Folder written by ``dptdr export --int8``, to compute in 8 bits.
    """

    backbone: str
    state_folder: Path
    tasks: tuple[tuple[str, Path], ...] = ()
    tasks_folder: Path | None = None
    indexes: tuple[tuple[str, Path], ...] = ()
    index_keys: tuple[str, ...] = ()
    hybrid: bool = False
    cross_encoder: str | None = None
    keys_file: Path | None = None
    open_administration: bool = True
    hosts: tuple[str, ...] = ()
    start: str = ""
    onnx: Path | None = None
