"""A server of two workers that do nothing, for tests of the supervisor."""

import os
import sys
import time
from pathlib import Path

from dptdr.serving.supervisor import CANNOT_LOAD, Supervisor


def work(folder, reports):
    """Leave a file named by the process id; cannot load while there is a file ``broken``."""
    if (folder / "broken").exists():
        (folder / f"failed-{os.getpid()}").touch()
        reports.send("its file is damaged")
        sys.exit(CANNOT_LOAD)
    reports.send(None)
    (folder / f"loaded-{os.getpid()}").touch()
    while True:
        time.sleep(1)


if __name__ == "__main__":
    from helpers.supervised import work as target

    Supervisor(
        target, (Path(sys.argv[1]),), workers=2, patience_seconds=5, retry_seconds=0.05
    ).run()
