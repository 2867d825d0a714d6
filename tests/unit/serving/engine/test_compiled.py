import json
import subprocess
import sys
from pathlib import Path

import pytest

from dptdr.errors import BackboneError
from dptdr.serving.engine.compiled import CompiledForward
from helpers.tiny import tiny_backbone

PROGRAM = Path(__file__).parents[2] / "helpers" / "compiled_serving.py"


def test_vectors_of_all_sizes_equal_each_row_alone_with_the_graphs_of_the_start():
    ended = subprocess.run(
        [sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=280, check=False
    )

    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["difference"] <= 1e-5
    # One with joint rows (or none), one with added rows besides; nothing is compiled later.
    assert found["at_start"] == 2
    assert found["in_all"] == 2


def test_a_compiler_that_fails_is_named_before_anything_is_served():
    def broken(graph, inputs):
        raise RuntimeError("no compiler found")

    with pytest.raises(BackboneError, match=r"cannot be compiled: .*serve without --compile"):
        CompiledForward(tiny_backbone("bert"), compiler=broken)
