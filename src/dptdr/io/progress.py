"""Progress reporting: a bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

_SECONDS_BETWEEN_LINES = 10.0


_phases: list[str] = []
_reached: list[str] = []


def current_phase() -> str:
    """Describe the current phase and its progress, for messages."""
    return ", ".join((_phases[-1], *_reached[-1:])) if _phases else ""


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a (done, total) callback that shows the progress of a phase on standard error.

    Args:
        what: Short name of the phase, such as ``encoding``.
    """
    _phases.append(what)
    _reached.clear()
    if sys.stderr.isatty():
        with _bar(what) as show:
            yield _noting(show)
    else:
        sys.stderr.write(f"{what} ...\n")
        yield _noting(_lines(what))
    # Kept after an error, so that the message can name the phase.
    _phases.pop()


def _noting(show: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Record the progress."""

    def noting(done: int, total: int) -> None:
        _reached[:] = [f"{done:,} of {total:,}" if total else f"{done:,}"]
        show(done, total)

    return noting


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(what: str) -> Callable[[int, int], None]:
    last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            sys.stderr.write(f"{what}: {done:,} of {total:,}\n")

    return show


class TrainingProgress:
    """Training progress: a bar on a terminal, a line every ten seconds elsewhere.

    Args:
        measure: Name of the dev measure.
    """

    def __init__(self, measure: str) -> None:
        self._measure = measure
        self._bar: Any = None
        self._task: Any = None
        self._last = 0.0

    def __enter__(self) -> "TrainingProgress":
        _phases.append("train")
        _reached.clear()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (
                TextColumn("train"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("train", total=None, facts="")
        else:
            sys.stderr.write("train ...\n")
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if error is None:
            _phases.pop()

    def __call__(self, now: Any) -> None:
        """Show one step, a ``dptdr.training.loop.Progress``."""
        _reached[:] = [f"step {now.step} of {now.steps}"]
        dev = "" if now.dev is None else f"  dev {self._measure} {now.dev:.4f}"
        facts = (
            f"loss {now.loss:.4f}{dev}  {now.texts_per_second:.0f} texts/s  "
            f"{_clock(now.seconds_left)} left"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=now.step, total=now.steps, facts=facts)
            return
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES or now.step == now.steps:
            self._last = time.monotonic()
            sys.stderr.write(f"step {now.step}/{now.steps}  {facts}\n")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
