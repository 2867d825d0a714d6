"""The supervisor keeps serving while a replacement cannot load."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]


@pytest.fixture
def supervised(tmp_path):
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-m", "helpers.supervised", str(tmp_path)],
            cwd=TESTS,
            env={**os.environ, "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"},
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def seen(folder, kind, *, number):
    """Wait until so many workers have left a file of the kind; return their process ids."""
    while len(found := list(folder.glob(f"{kind}-*"))) < number:
        time.sleep(0.02)
    return [int(path.name.partition("-")[2]) for path in found]


def test_a_replacement_that_cannot_load_is_tried_again_while_others_serve(tmp_path, supervised):
    process = supervised()
    first, second = seen(tmp_path, "loaded", number=2)
    (tmp_path / "broken").touch()
    os.kill(first, signal.SIGKILL)
    # More often than the deaths that end a server of which nothing has loaded.
    seen(tmp_path, "failed", number=7)
    assert process.poll() is None
    os.kill(second, 0)
    (tmp_path / "broken").unlink()
    seen(tmp_path, "loaded", number=3)
    process.terminate()
    assert "its file is damaged" in process.communicate()[1]


def test_workers_that_cannot_load_end_a_server_that_never_served(tmp_path, supervised):
    (tmp_path / "broken").touch()
    process = supervised()
    assert "ServingError: its file is damaged" in process.communicate()[1]
    assert process.returncode == 1


def test_a_server_ends_with_its_last_worker_if_no_other_can_load(tmp_path, supervised):
    process = supervised()
    both = seen(tmp_path, "loaded", number=2)
    (tmp_path / "broken").touch()
    for pid in both:
        os.kill(pid, signal.SIGKILL)
    assert "ServingError: its file is damaged" in process.communicate()[1]
