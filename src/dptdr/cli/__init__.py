"""The command line, a thin layer over :mod:`dptdr.api`."""

import os
import sys
from io import TextIOBase
from pathlib import Path
from typing import IO


def main() -> None:
    """Run the ``dptdr`` command.

    Expected errors print one line and exit with code 2, or their own code; interruption exits with
    130 and a closed pipe with 141, following shell conventions.
    """
    # A stream that was closed before the start; messages to it go nowhere.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    try:
        from dptdr.cli.app import PipeClosed, Stopped, build_app
        from dptdr.errors import DptdrError
    except KeyboardInterrupt:
        _end(130, "interrupted before anything began")

    try:
        build_app()()
    except DptdrError as error:
        _end(error.exit_code, f"error: {error}")
    except Stopped as stopped:
        _end(130, f"interrupted {stopped}")
    except KeyboardInterrupt:
        _end(130, "interrupted before anything began")
    except PipeClosed:
        # The reader has closed the pipe, so nothing may be written at exit either.
        _discard(sys.stdout)
        sys.exit(141)
    except OSError as error:
        where = error.filename or ("" if _takes_output() else "standard output")
        _end(2, f"error: {f'{where}: ' if where else ''}{error.strerror or error}")


def _takes_output() -> bool:
    """Check whether standard output can be written, as errors do not name it."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        _discard(sys.stdout)
        return False
    return True


def _discard(stream: TextIOBase | IO[str]) -> None:
    """Write what is left in a stream's buffer, and all that follows, to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _end(code: int, line: str) -> None:
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)
    sys.exit(code)
