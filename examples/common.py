"""Shared by the examples: options, errors, printing of calls, and the paper's two rounds."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import dptdr
from dptdr.errors import DptdrError


class Shown:
    """What a call would have returned, in a dry run."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class Calls:
    """Call functions and print them, as Python would be written.

    Args:
        dry_run: Print only.
    """

    def __init__(self, *, dry_run: bool) -> None:
        self.dry_run = dry_run

    def __call__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        made: Path | None = None,
        **settings: Any,
    ) -> Any:
        """Make one call, unless what it makes is there.

        Args:
            function: What to call.
            *arguments: Its arguments.
            made: A file that tells that the call was made before.
            **settings: Its settings.
        """
        parts = [shown(value) for value in arguments]
        parts += [f"{name}={shown(value)}" for name, value in settings.items()]
        text = f"{function.__name__}({', '.join(parts)})"
        if made is not None and made.exists():
            print(f"{text}  # complete: {made}", flush=True)
            return Shown(text)
        print(text, flush=True)
        return Shown(text) if self.dry_run else function(*arguments, **settings)


def shown(value: Any) -> str:
    """Return a value as it is written in a call."""
    return repr(str(value)) if isinstance(value, Path) else repr(value)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like those of the ``dptdr`` command."""

    def error(self, message: str) -> NoReturn:
        """End the script with exit code 2."""
        self.exit(2, f"error: {message}; see --help\n")


def run_script(main: Callable[[], None]) -> None:
    """Run a script; an expected error is one line and its exit code, without a traceback."""
    try:
        main()
    except (DptdrError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(getattr(error, "exit_code", 2))


def parser(text: str, *, out: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all examples have.

    Args:
        text: The script's docstring.
        out: Default folder for everything that is made.
    """
    made = Parser(description=text.splitlines()[0])
    made.add_argument("--out", type=Path, default=Path(out), help="folder for everything made")
    made.add_argument("--dry-run", action="store_true", help="print the calls, make none")
    made.add_argument("--device", default="auto", help="torch device")
    return made


def mine_and_train(
    call: Calls,
    data: Path,
    *,
    out: Path,
    backbone: Path | str,
    mining: dict[str, Any],
    training: dict[str, Any],
    start: Path | None = None,
    rounds: int = 1,
    device: str = "auto",
) -> Path:
    """Unified negative mining: BM25 and the retriever of the round before, then training.

    Args:
        call: Makes the calls.
        data: The data.
        out: The last task; what comes before it goes beside it.
        backbone: Name or folder of the encoder.
        mining: Settings of :func:`dptdr.mine`.
        training: Settings of :func:`dptdr.train`.
        start: The first round's retriever; BM25 alone without one.
        rounds: How often to mine and train.
        device: Torch device.

    Returns:
        The last task.
    """
    for number in range(1, rounds + 1):
        negatives = out.with_name(f"{out.name}-{number}.jsonl")
        task = out if number == rounds else out.with_name(f"{out.name}-{number}")
        sources = ["bm25"] if start is None else ["bm25", f"task:{start}"]
        call(
            dptdr.mine,
            data,
            out=negatives,
            sources=sources,
            device=device,
            made=negatives,
            **mining,
        )
        call(
            dptdr.train,
            data,
            out=task,
            backbone=backbone,
            negatives=negatives,
            device=device,
            made=task / "task.json",
            **training,
        )
        start = task
    return out
