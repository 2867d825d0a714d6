"""Mining: time and memory by corpus and query count, compared with sentence-transformers.

::

    python benchmarks/mining.py scale --data tldr --sizes 10000 100000 1000000
    python benchmarks/mining.py peer --data tldr --passages 2000 --queries 500
    python benchmarks/mining.py table

`peer` needs the package `datasets`, which sentence-transformers' mining uses. `build` only writes
the synthetic corpora, so that the other commands measure only mining. The records of false-negative
removal come from `dptdr mine --judged-split`, one for each bound.

A corpus of a given size repeats the texts of a real one, each with a different number word, so that
no two passages are equal. Every measurement runs in its own process, for its own time and peak
memory. Writes results/mining.jsonl; the table is in results/mining.md.
"""

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import _lib

RESULTS = _lib.RESULTS / "mining.jsonl"
PAGE = RESULTS.with_suffix(".md")
REMOVAL = "Removal of false negatives, against graded judgements"
QUOTA = 30
DEPTH = 200
PERCENT = 95.0


def main() -> None:
    """Measure, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for step in (build, scale, peer, one_scale, one_peer):
        sub = commands.add_parser(step.__name__.replace("_", "-"))
        sub.set_defaults(call=step)
        _lib.add_options(sub, data=("tldr", "name of a packed data set, or a folder"))
        _lib.add_options(sub, source=_lib.SHARED_DATA, work=_lib.temporary("mining"))
        _lib.add_options(sub, sizes=[10_000, 100_000, 1_000_000], queries=[1_000])
        _lib.add_options(sub, passages=2_000, threads=2, system="")
    commands.add_parser("table").set_defaults(call=table)
    _lib.obey(parser)


def build(arguments: argparse.Namespace) -> None:
    """Write the corpora of `scale`."""
    for size in arguments.sizes:
        for queries in arguments.queries:
            print(synthetic(arguments, passages=size, queries=queries), flush=True)


def scale(arguments: argparse.Namespace) -> None:
    """Mine from growing corpora and with growing numbers of queries, each in its own process."""
    for size in arguments.sizes:
        for queries in arguments.queries:
            folder = synthetic(arguments, passages=size, queries=queries)
            name = f"scale-{size}-{queries}"
            measure("one-scale", arguments, name=name, data=folder, system="dptdr")


def peer(arguments: argparse.Namespace) -> None:
    """Mine from one corpus with one encoder, here and in sentence-transformers."""
    folder = synthetic(arguments, passages=arguments.passages, queries=arguments.queries[0])
    for system in ("dptdr", "sentence-transformers"):
        name = f"peer-{arguments.passages}-{arguments.queries[0]}-{system}"
        measure("one-peer", arguments, name=name, data=folder, system=system)


def measure(
    command: str, arguments: argparse.Namespace, *, name: str, data: Path, system: str
) -> None:
    threads = str(arguments.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    call = [sys.executable, str(Path(__file__)), command, "--data", str(data)]
    call += ["--work", str(arguments.work), "--threads", threads, "--system", system]
    print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
    done = subprocess.run(call, env=environment, check=True, stdout=subprocess.PIPE)
    keep(name, {**json.loads(done.stdout.splitlines()[-1]), "threads": int(threads)})


def keep(name: str, found: dict[str, Any]) -> None:
    """Write a result with all that tells how it was made."""
    command = " ".join(["benchmarks/mining.py", *sys.argv[1:]])
    origin = {"commit": _lib.commit(), "machine": _lib.machine(), "load_before": os.getloadavg()[0]}
    found |= {"name": name, "command": command, **origin, "python": platform.python_version()}
    _lib.put_records(RESULTS, [found], ("name",))
    print(json.dumps(found), flush=True)


def synthetic(arguments: argparse.Namespace, *, passages: int, queries: int) -> Path:
    """Return a BEIR folder of the wanted size, written once."""
    from dptdr.io.beir import BeirFolder, write_beir
    from dptdr.records import Passage, Query

    source = BeirFolder(unpacked(arguments))
    out = arguments.work / f"{source.name}-{passages}-{queries}"
    if out.is_dir():
        return out
    base = list(source.passages())
    judged = source.qrels("train")
    held = {passage.id for passage in base[:passages]}
    kept = {
        query: {key: grade for key, grade in grades.items() if key in held}
        for query, grades in judged.items()
    }
    kept = {query: grades for query, grades in kept.items() if any(grades.values())}
    originals = [query for query in source.queries() if query.id in kept]

    def _passages() -> Iterator[Passage]:
        for number in range(passages):
            copy, row = divmod(number, len(base))
            one = base[row]
            if copy == 0:
                yield one
            else:
                text = f"{one.text} n{number}"
                yield Passage(f"{one.id}-{copy}", text, one.title)

    def _queries() -> Iterator[Query]:
        for number in range(queries):
            copy, row = divmod(number, len(originals))
            one = originals[row]
            yield one if copy == 0 else Query(f"{one.id}-{copy}", one.text)

    qrels = {
        query.id: kept[originals[number % len(originals)].id]
        for number, query in enumerate(_queries())
    }
    write_beir(out, passages=_passages(), queries=_queries(), qrels={"train": qrels}, meta={})
    return out


def unpacked(arguments: argparse.Namespace) -> Path:
    given = Path(arguments.data)
    if given.is_dir():
        return given
    out: Path = arguments.work / "data" / arguments.data
    if not out.is_dir():
        out.mkdir(parents=True)
        with tarfile.open(arguments.source / f"{arguments.data}.tar.xz") as packed:
            packed.extractall(out, filter="data")
    inner = out / arguments.data
    return inner if inner.is_dir() else out


def one_scale(arguments: argparse.Namespace) -> None:
    """BM25 and a second run file of ours, united: all stages, in this process."""
    from dptdr.mining.folder import MineRequest, mine_folder
    from dptdr.mining.settings import MiningSettings, SourceSettings
    from dptdr.mining.sources import Machine

    data = Path(arguments.data)
    stages: dict[str, dict[str, float]] = {}

    @contextmanager
    def _show(what: str) -> Iterator[Any]:
        started = time.perf_counter()
        yield lambda done, total: None
        label = what if what not in stages else f"{what} (second source)"
        stages[label] = {"seconds": time.perf_counter() - started, "peak_mb": peak_megabytes()}

    settings = MiningSettings(
        sources=(
            SourceSettings(name="bm25", kind="bm25", range_max=DEPTH, num_negatives=QUOTA),
            SourceSettings(
                name="deep", kind="bm25", range_min=20, range_max=DEPTH, num_negatives=QUOTA,
                sampling="score",
            ),
        )
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=arguments.work) as place:
        out = Path(place) / "negatives.jsonl"
        started = time.perf_counter()
        request = MineRequest(
            data=data, out=out, settings=settings, machine=Machine(threads=arguments.threads)
        )
        report = mine_folder(request, show=_show)
        seconds = time.perf_counter() - started
        size = out.stat().st_size
    passages, queries = (int(part) for part in data.name.split("-")[-2:])
    found = {
        "passages": passages,
        "queries": queries,
        "negatives": report["negatives"],
        "output_mb": size / 1e6,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds(),
        "peak_mb": peak_megabytes(),
        "stages": stages,
    }
    print(json.dumps(found))


def one_peer(arguments: argparse.Namespace) -> None:
    """One encoder, top 30 of 200, candidates above 95 % of the positive's score dropped."""
    data = Path(arguments.data)
    passages, queries = (int(part) for part in data.name.split("-")[-2:])
    found = {"system": arguments.system, "passages": passages, "queries": queries}
    mined = _mine_here if arguments.system == "dptdr" else _mine_there
    started = time.perf_counter()
    found |= mined(data, arguments)
    found |= {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": cpu_seconds(),
        "peak_mb": peak_megabytes(),
    }
    print(json.dumps(found))


def _mine_here(data: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from contextlib import nullcontext

    from dptdr.mining.folder import MineRequest, mine_folder
    from dptdr.mining.settings import FilteringSettings, MiningSettings, SourceSettings
    from dptdr.mining.sources import Machine

    source = SourceSettings(
        name="minilm", kind="backbone", value="minilm", range_max=DEPTH, num_negatives=QUOTA
    )
    with tempfile.TemporaryDirectory(dir=arguments.work) as place:
        request = MineRequest(
            data=data,
            out=Path(place) / "negatives.jsonl",
            settings=MiningSettings(
                sources=(source,),
                filtering=FilteringSettings(
                    relative_margin=1 - PERCENT / 100, positive_score="min"
                ),
            ),
            teacher="backbone:minilm",
            machine=Machine(threads=arguments.threads),
        )
        report = mine_folder(request, show=lambda what: nullcontext(lambda done, total: None))
    return {"negatives": report["negatives"]}


def _mine_there(data: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    import datasets.arrow_dataset
    import sentence_transformers
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    from dptdr.io.beir import BeirFolder

    # Its hash of the table fails with some releases of pyarrow; nothing here depends on it.
    datasets.arrow_dataset.generate_fingerprint = lambda dataset: os.urandom(8).hex()
    folder = BeirFolder(data)
    texts = {passage.id: passage.content for passage in folder.passages()}
    judged = folder.qrels("train")
    pairs = [
        (query.text, texts[key])
        for query in folder.queries()
        for key, grade in judged.get(query.id, {}).items()
        if grade > 0
    ]
    dataset = Dataset.from_dict(
        {"query": [query for query, _ in pairs], "answer": [text for _, text in pairs]}
    )
    mined = mine_hard_negatives(
        dataset,
        _lib.sentence_transformer(),
        corpus=list(texts.values()),
        range_max=DEPTH,
        relative_margin=1 - PERCENT / 100,
        num_negatives=QUOTA,
        sampling_strategy="top",
        output_format="triplet",
        verbose=False,
    )
    return {"negatives": len(mined), "version": sentence_transformers.__version__}


def peak_megabytes() -> float:
    """Return this process's peak memory in megabytes; mapped files count while they are held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def cpu_seconds() -> float:
    """Return this process's processor time: what other processes on the machine change least."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# --- table -------------------------------------------------------------------------------------


def table(arguments: argparse.Namespace) -> None:
    """Write results/mining.md from the records."""
    del arguments
    cells = sorted(_lib.read_records(RESULTS), key=lambda record: str(record["name"]))
    lines = ["# Mining: time, memory, and what is removed", ""]
    lines += scale_lines([cell for cell in cells if cell["name"].startswith("scale")])
    lines += peer_lines([cell for cell in cells if cell["name"].startswith("peer")])
    # Measured once; no script takes these measures again.
    lines += _lib.kept_section(PAGE, f"## {REMOVAL}", until="## Origin")
    lines.append("")
    origins = {
        f"- commit {cell['commit']}, {cell['machine']}, load before {cell['load_before']:.1f}, "
        f"`python {cell['command']}`"
        for cell in cells
    }
    lines += ["## Origin", "", *sorted(origins)]
    _lib.write_page(PAGE, lines)


def scale_lines(cells: list[dict[str, Any]]) -> list[str]:
    if not cells:
        return []
    lines = [
        *_lib.kept_section(PAGE, "## Scale", until="| "),
        "",
        "| passages | queries | seconds | processor s | read corpus | index | search | unite "
        "| peak MB |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    cells = sorted(cells, key=lambda cell: (cell["passages"], cell["queries"]))
    for cell in cells:
        stage = {name: entry["seconds"] for name, entry in cell["stages"].items()}
        search = sum(value for name, value in stage.items() if name.startswith("search"))
        columns = [
            f"{cell['passages']:,}",
            f"{cell['queries']:,}",
            f"{cell['seconds']:.1f}",
            f"{cell['cpu_seconds']:.1f}",
            f"{stage['read the corpus']:.1f}",
            f"{stage['index for BM25']:.1f}",
            f"{search:.1f}",
            f"{stage['mine']:.1f}",
            f"{cell['peak_mb']:,.0f}",
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return [*lines, "", *slopes(cells), ""]


def peer_lines(cells: list[dict[str, Any]]) -> list[str]:
    if not cells:
        return []
    lines = [
        *_lib.kept_section(PAGE, "## Beside sentence-transformers", until="| "),
        "",
        "| system | passages | queries | seconds | processor s | peak MB | negatives |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for cell in sorted(cells, key=lambda entry: (entry["passages"], entry["system"])):
        version = f" {cell['version']}" if "version" in cell else ""
        lines.append(
            f"| {cell['system']}{version} | {cell['passages']:,} | {cell['queries']:,} | "
            f"{cell['seconds']:.1f} | {cell['cpu_seconds']:.1f} | {cell['peak_mb']:,.0f} | "
            f"{cell['negatives']:,} |"
        )
    kept = _lib.kept_section(PAGE, "### What it cannot do", until="## ")
    return [*lines, "", *kept, ""]


def slopes(cells: list[dict[str, Any]]) -> list[str]:
    """Return how time and memory grow from the smallest to the largest corpus, as powers."""
    fewest = min(cell["queries"] for cell in cells)
    same = [cell for cell in cells if cell["queries"] == fewest]
    if len(same) < 2:
        return []
    small, large = same[0], same[-1]
    growth = math.log(large["passages"] / small["passages"])
    parts = []
    for what in ("seconds", "peak_mb"):
        power = math.log(large[what] / small[what]) / growth
        parts.append(f"{what.replace('peak_mb', 'peak memory')}: passages ** {power:.2f}")
    per_passage = (large["peak_mb"] - small["peak_mb"]) * 1e6
    per_passage /= large["passages"] - small["passages"]
    return [f"Slope at {fewest:,} queries: {', '.join(parts)}; {per_passage:.0f} bytes a passage."]


if __name__ == "__main__":
    main()
