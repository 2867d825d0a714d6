"""The benchmark for GPUs in tiny sizes, so that it is known to work before there is a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.learning

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "training.py"


def test_gpu_benchmark_runs_in_tiny_sizes_and_compares_gradients():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--small", "--steps", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    # It stops where a gradient is further from the CPU's float32 one than it states.
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| RoBERTa-large |")]
    assert len(rows) == 5  # Two prompt lengths of steps and of attention, one line of gradients.
