"""The ``dptdr`` command in this process: as its users start it, without the seconds of a start."""

import contextlib
import io
import sys
from subprocess import CompletedProcess
from unittest import mock


def dptdr(*arguments, check=False):
    """Run the command; returns what :func:`subprocess.run` would."""
    from dptdr.cli import main

    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", ["dptdr", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    assert not check or code == 0, err.getvalue()
    return CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
