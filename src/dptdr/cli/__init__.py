"""The command line: thin functions over the rooms below."""

import sys


def main() -> None:
    """Run the ``dptdr`` command; every expected error ends with one line and exit code 2."""
    from dptdr.cli.app import build_app
    from dptdr.errors import DptdrError

    try:
        build_app()()
    except DptdrError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was finished is kept\n")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
