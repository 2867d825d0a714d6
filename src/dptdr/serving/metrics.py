"""Prometheus metrics for one worker or aggregated over all."""

import copy
import os
from collections.abc import Iterator
from typing import Any

from dptdr.serving.engine.results import BatchReport, CheckReport, Encoded

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
_TASKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of a server.

    Labels are limited to existing tasks, so that clients cannot exhaust memory with made-up names.
    """

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry, "namespace": "dptdr"}
        add, most = ({"multiprocess_mode": mode, **own} for mode in ("livesum", "livemax"))
        task = {"labelnames": ["task"], **own}
        self.requests = Counter("requests", "Requests.", ["route", "status"], **own)
        self.task_requests = Counter("task_requests", "Requests for vectors.", **task)
        self.task_texts = Counter("task_texts", "Texts encoded.", **task)
        self.task_tokens = Counter("task_tokens", "Tokens encoded.", **task)
        self.task_seconds = Histogram(
            "task_seconds",
            "Time from arrival until vectors are computed.",
            buckets=_SECONDS,
            **task,
        )
        self.wait_seconds = Histogram(
            "wait_seconds", "Time from arrival until the batch starts.", buckets=_SECONDS, **own
        )
        self.batches = Counter("batches", "Batches computed.", **own)
        self.batch_seconds = Counter(
            "batch_compute_seconds", "Time spent computing batches.", **own
        )
        self.batch_share = Histogram(
            "batch_fill", "Tokens in a batch divided by the limit.", buckets=_SHARES, **own
        )
        self.batch_tasks = Histogram(
            "batch_tasks", "Distinct prompts in a batch.", buckets=_TASKS, **own
        )
        self.queue_tokens = Gauge("queue_tokens", "Tokens in the queue.", **add)
        self.tasks = Gauge("tasks", "Number of tasks.", **most)
        self.prompt_bytes = Gauge("prompt_bytes", "Memory used by cached prompts.", **add)
        self.checks = Counter("self_checks", "Self-checks by outcome.", ["outcome"], **own)
        self.check_difference = Gauge(
            "self_check_difference",
            "Largest difference in the last self-check, relative to the largest norm.",
            **most,
        )

    def saw_answer(self, task: str, encoded: Encoded) -> None:
        """Count a request for vectors."""
        self.task_requests.labels(task).inc()
        self.task_texts.labels(task).inc(len(encoded.tokens))
        self.task_tokens.labels(task).inc(sum(encoded.tokens))
        self.task_seconds.labels(task).observe(encoded.seconds)
        self.wait_seconds.observe(encoded.waited_seconds)

    def saw_batch(self, report: BatchReport) -> None:
        """Count a batch."""
        self.batches.inc()
        self.batch_seconds.inc(report.seconds)
        self.batch_share.observe(report.share)
        self.batch_tasks.observe(report.tasks)
        self.queue_tokens.set(report.waiting_tokens)

    def saw_check(self, report: CheckReport) -> None:
        """Count a self-check."""
        self.checks.labels("passed" if report.passed else "failed").inc()
        self.check_difference.set(report.difference)

    def text(self, *, existing: set[str], shown: set[str], all_shown: bool) -> bytes:
        """Format the metrics of all workers in the Prometheus text format.

        Args:
            existing: Existing tasks; metrics of other tasks are deleted.
            shown: Tasks to include.
            all_shown: Also include metrics that are not specific to a task.
        """
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        together = self.registry
        if folder:
            together = CollectorRegistry()
            MultiProcessCollector(together, path=folder)
        else:
            self._forget(existing)
        made: bytes = generate_latest(_Filtered(together, shown=shown, all_shown=all_shown))
        return made

    def _forget(self, existing: set[str]) -> None:
        for metric in (self.task_requests, self.task_texts, self.task_tokens, self.task_seconds):
            for family in metric.collect():
                for name in {sample.labels["task"] for sample in family.samples} - existing:
                    metric.remove(name)


class _Filtered:
    """A collector wrapper that hides some tasks."""

    def __init__(self, collector: Any, *, shown: set[str], all_shown: bool) -> None:
        self.collector = collector
        self.shown = shown
        self.all_shown = all_shown

    def collect(self) -> Iterator[Any]:
        """Yield metric families with only the visible samples."""
        for family in self.collector.collect():
            kept = copy.copy(family)
            kept.samples = [s for s in family.samples if self._shows(s.labels.get("task"))]
            if kept.samples:
                yield kept

    def _shows(self, task: str | None) -> bool:
        return self.all_shown if task is None else task in self.shown
