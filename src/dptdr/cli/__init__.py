"""The command line: thin functions over :mod:`dptdr.api`."""

import os
import sys


def main() -> None:
    """Run the ``dptdr`` command.

    Each expected error ends with one line and exit code 2, or its own; an interruption with 130,
    and a closed pipe with 141, as shells expect.
    """
    from dptdr.cli.app import PipeClosed, Stopped, build_app
    from dptdr.errors import DptdrError

    try:
        build_app()()
    except DptdrError as error:
        _end(error.exit_code, f"error: {error}")
    except Stopped as stopped:
        _end(130, f"interrupted {stopped}; what is finished is kept, the same command continues")
    except PipeClosed:
        # Whoever read the output has gone; nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _end(2, f"error: {where}{error.strerror or error}")


def _end(code: int, line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.exit(code)
