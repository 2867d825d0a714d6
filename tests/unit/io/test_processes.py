"""Worker processes of scripts."""

import subprocess
import sys

import pytest

SCRIPT = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dptdr.config.arguments import checked

@checked
def stage():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        print(pool.submit(abs, -7).result())
"""


@pytest.mark.parametrize(
    ("call", "code"), [("stage()", 1), ("if __name__ == '__main__': stage()", 0)]
)
def test_a_script_that_is_run_again_by_its_workers_is_told_so(tmp_path, call, code):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + call)

    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)

    assert done.returncode == code
    assert (done.stdout == "7\n") == (code == 0)
    assert ("run again by one of its worker processes" in done.stderr) == (code == 1)
