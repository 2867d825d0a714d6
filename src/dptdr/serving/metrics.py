"""Prometheus metrics, for one worker or for all of them together."""

import copy
import os
from collections.abc import Iterator
from typing import Any

from dptdr.serving.engine.requests import BatchReport, CheckReport, Encoded

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
_TASKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of a server.

    Labels are names of existing tasks, so that nobody can fill the memory with invented ones.
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
            "task_seconds", "From arrival to vectors.", buckets=_SECONDS, **task
        )
        self.wait_seconds = Histogram(
            "wait_seconds", "From arrival to the batch.", buckets=_SECONDS, **own
        )
        self.batches = Counter("batches", "Batches computed.", **own)
        self.batch_seconds = Counter("batch_compute_seconds", "Time spent computing.", **own)
        self.batch_share = Histogram(
            "batch_fill", "Tokens of a batch over its budget.", buckets=_SHARES, **own
        )
        self.batch_tasks = Histogram(
            "batch_tasks", "Different prompts in a batch.", buckets=_TASKS, **own
        )
        self.queue_tokens = Gauge("queue_tokens", "Tokens that wait.", **add)
        self.tasks = Gauge("tasks", "Tasks known.", **most)
        self.prompt_bytes = Gauge("prompt_bytes", "Prompts in memory.", **add)
        self.checks = Counter("self_checks", "Self-checks by outcome.", ["outcome"], **own)
        self.check_difference = Gauge(
            "self_check_difference",
            "Largest difference of the last self-check, in units of the longest vector.",
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
        """Return the metrics of all workers in Prometheus' text format.

        Args:
            existing: Tasks that exist; counts of others are forgotten.
            shown: Tasks whose counts are returned.
            all_shown: Whether counts over all tasks are returned too.
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
    """A collector's metrics without some tasks."""

    def __init__(self, collector: Any, *, shown: set[str], all_shown: bool) -> None:
        self.collector = collector
        self.shown = shown
        self.all_shown = all_shown

    def collect(self) -> Iterator[Any]:
        """Yield metric families with the visible samples."""
        for family in self.collector.collect():
            kept = copy.copy(family)
            kept.samples = [s for s in family.samples if self._shows(s.labels.get("task"))]
            if kept.samples:
                yield kept

    def _shows(self, task: str | None) -> bool:
        return self.all_shown if task is None else task in self.shown
