"""FlexAttention by its reference on the processor: the same call and masks as on a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.learning

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "serving.py"


def test_gpu_serving_benchmark_gives_the_padded_vectors():
    # FlexForward refuses a backbone on which its vectors differ from the padded ones.
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--try"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
