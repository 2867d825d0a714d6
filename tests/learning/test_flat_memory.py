"""Converting a large table takes no more memory than a small one."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from dptdr.data.formats.conversion import convert
convert(sys.argv[1], out=sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_kilobytes(source, out):
    words = [sys.executable, "-c", PROGRAM, source, out]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def write_table(path, *, rows):
    """About 2.1 kB a row."""
    with path.open("w") as handle:
        handle.write("query,positive\n")
        for row in range(rows):
            handle.write(f"query {row},{f'word{row} ' * 200}\n")
    return path


@pytest.mark.learning
def test_memory_does_not_grow_with_the_table(tmp_path):
    small = peak_kilobytes(write_table(tmp_path / "small.csv", rows=500), tmp_path / "a")
    table = write_table(tmp_path / "large.csv", rows=50_000)
    assert table.stat().st_size > 90e6
    assert peak_kilobytes(table, tmp_path / "b") < small + 60_000
