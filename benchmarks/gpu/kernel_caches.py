"""What bounding the matrix libraries' kernel caches costs and saves: results/kernel-caches.md.

    python benchmarks/gpu/kernel_caches.py

Two processes, one with the libraries' own bound of 1,024 kernels each and one with ours, encode the
same batches of texts of many lengths; resident memory is read on the way, and the time at the end.
"""

import argparse
import json
import os
import subprocess
import sys

import _encoders  # noqa: F401 - the way to _lib

import _lib

NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")

_RUN = """
import json, random, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from dptdr.model import Backbone
from dptdr.serving.forward import Forward, BatchRow

batches = int(sys.argv[1])
forward = Forward(Backbone.load("minilm"))
generator = random.Random(0)
memory = []
began = time.process_time()
for number in range(batches + 1):
    if number % (batches // 4) == 0:
        status = Path("/proc/self/status").read_text()
        memory.append(int(status.split("VmRSS:")[1].split()[0]) // 1000)
    rows = []
    for _ in range(generator.choice([1, 1, 2, 8])):
        length = int(1 + 150 * generator.random() ** 3)
        rows.append(BatchRow([generator.randrange(1000, 20000) for _ in range(length)]))
    forward.vectors(rows)
print(json.dumps({"memory": memory, "seconds": round(time.process_time() - began, 1)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    _lib.add_options(parser, batches=1200, out=_lib.RESULTS / "kernel-caches.md")
    arguments = parser.parse_args()
    rows = []
    for name, bound in (("the libraries' own, 1,024", "1024"), ("ours, 64", "")):
        environment = {key: value for key, value in os.environ.items() if key not in NAMES}
        environment |= dict.fromkeys(NAMES, bound) if bound else {}
        command = [sys.executable, "-c", _RUN, str(arguments.batches)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        rows.append([name, *map(str, found["memory"]), str(found["seconds"])])
    quarter = arguments.batches // 4
    heads = ["kernels kept", *(f"MB after {quarter * part}" for part in range(5)), "seconds"]
    lines = [*_lib.kept_words(arguments.out, "| "), "", *_lib.table(heads, rows), ""]
    _lib.write_page(arguments.out, [*lines, f"Commit {_lib.commit()}, {_lib.machine()}, seed 0."])


if __name__ == "__main__":
    main()
