"""Per-process temporary folders, which are cleaned up even after a kill."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dptdr.io.atomic import is_alive


@contextlib.contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Yield a temporary folder, and delete those of dead processes."""
    prefix = f"dptdr-{purpose}-"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        owner = re.match(r"(\d+)-", left.name.removeprefix(prefix))
        if owner is not None and not is_alive(int(owner[1])):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-") as folder:
        yield Path(folder)
