import subprocess
import sys

from dptdr.io.atomic import atomic_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from dptdr.io.atomic import atomic_folder
with atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_run_removes_what_a_killed_one_left_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False)
    (left,) = tmp_path.iterdir()
    assert (left / "half").is_file()
    with atomic_folder(out) as running, atomic_folder(tmp_path / "out2"):
        assert not left.exists()
        # Of a process that runs, and of another target.
        with atomic_folder(out):
            assert running.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out2"]
