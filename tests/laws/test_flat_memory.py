"""Memory stays flat over texts of many lengths."""

import subprocess
import sys

import pytest

_MEASURE = """
import random
from pathlib import Path
from dptdr.model import Backbone
from dptdr.serving.forward import Forward, BatchRow

def resident():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) // 1000

forward = Forward(Backbone.load("minilm"))
generator = random.Random(0)
found = []
for number in range(120):
    count = generator.choice([1, 1, 2, 4])
    rows = [BatchRow([1000] * generator.randrange(1, 90)) for _ in range(count)]
    forward.vectors(rows)
    if number in (49, 119):
        found.append(resident())
print(*found)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
def test_kernels_of_many_lengths_do_not_pile_up():
    made = subprocess.run(
        [sys.executable, "-c", _MEASURE], capture_output=True, text=True, check=True
    )
    before, after = map(int, made.stdout.split())
    # Without bounds the process grows by more than 60 MB here, and goes on growing.
    assert after - before < 25


_CONVERT = """
import resource, sys
from pathlib import Path
from dptdr.data.formats.conversion import convert

source, rows = Path(sys.argv[1]), int(sys.argv[2])
with source.open("w") as handle:
    handle.write("query,positive,negative\\n")
    for number in range(rows):
        handle.write(f"q{number // 2},p{number} " + "x" * 2000 + f",n{number}\\n")
convert(source, out=source.with_suffix(""))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory in Linux's unit")
def test_converting_a_table_takes_no_more_memory_for_more_rows(tmp_path):
    peaks = []
    for rows in (5_000, 20_000):
        command = [sys.executable, "-c", _CONVERT, str(tmp_path / f"{rows}.csv"), str(rows)]
        made = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(made.stdout))
    # The larger file is larger by 30 MB.
    assert peaks[1] - peaks[0] < 8
