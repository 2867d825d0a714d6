"""What several benchmarks share: data sets, result files, origin, tables, paired tests."""

import argparse
import contextlib
import ctypes
import fcntl
import gc
import hashlib
import json
import os
import platform
import random
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
SHARED_DATA = ROOT.parent / "shared" / "data"
SAMPLES = ("python-code", "python-api")

Record = dict[str, Any]


def processor() -> str:
    """Name the processor, and its wide instructions: they change times by a large factor."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            if name.strip() == "flags":
                if "avx512f" in value.split():
                    model += " with AVX-512"
                break
    return model


def machine() -> str:
    """Describe the processor."""
    return f"{processor()}, {os.cpu_count()} cores"


def commit() -> str:
    """Return the commit that is checked out."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def here() -> Record:
    """Return the commit and the machine that a record was made with."""
    return {"commit": commit(), "cpu": processor(), "cores": os.cpu_count()}


Command = Callable[[argparse.Namespace], None]


def commands(
    documentation: str, *, run: Command, table: Command, results: Path, name: str = "run"
) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Return a parser of two commands, to measure and to write the page, and that of the first."""
    parser = argparse.ArgumentParser(description=documentation.splitlines()[0])
    subparsers = parser.add_subparsers(dest="command", required=True)
    for word, call in ((name, run), ("table", table)):
        sub = subparsers.add_parser(word)
        sub.add_argument("--json", type=Path, default=results, help="where the records are")
        sub.set_defaults(call=call)
    return parser, subparsers.choices[name]


def obey(parser: argparse.ArgumentParser) -> None:
    """Read the command line, and call what it asks for."""
    options = parser.parse_args()
    options.call(options)


def add_options(parser: argparse.ArgumentParser, **options: Any) -> None:
    """Add options, each by its default value, or by a pair of the default and its help.

    The default says the type. A type in its place makes an option that must be given; a list takes
    several values.
    """
    for name, given in options.items():
        default, text = given if isinstance(given, tuple) else (given, None)
        several = isinstance(default, list)
        first = default[0] if several else default
        more: Record = {"type": type(first), "default": default}
        if isinstance(first, type):
            more = {"type": first, "required": True}
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, nargs="+" if several else None, help=text, **more)


MACHINE: Record = {
    "encoder": ("minilm", "name or folder of the backbone"),
    "device": "cpu",
    "threads": 1,
    "data": (SHARED_DATA, "where data sets are"),
}
"""Options of what trains on data sets by their names, and where."""

VECTORS: Record = {
    "data": ([Path], "BEIR folders"),
    "backbone": "minilm",
    "threads": (1, "torch threads"),
    "work": (Path, "folder for the vectors"),
}
"""Options of what searches in vectors of whole corpora, which are encoded once."""


def temporary(name: str) -> Path:
    """Return a benchmark's own folder of what may be lost."""
    return Path(tempfile.gettempdir()) / f"dptdr-{name}"


def resident(field: str = "VmRSS", *, reset: bool = False) -> float:
    """Return this process's memory in MB, now (VmRSS) or at its peak (VmHWM) since a reset."""
    if reset:
        gc.collect()
        # What loading has left behind would hide what a step takes.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{field}:")[1].split()[0]) / 1e3


# --- result files


def read_records(path: Path) -> list[Record]:
    """Return the records of a file of JSON lines, none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line; several processes may add to the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as out:
        fcntl.flock(out, fcntl.LOCK_EX)
        out.write(json.dumps(record) + "\n")


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a whole file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def put_records(path: Path, records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Add records; those that are there under the same key are replaced."""
    new = {key_of(record, names) for record in records}
    kept = [record for record in read_records(path) if key_of(record, names) not in new]
    write_records(path, [*kept, *records])


def key_of(record: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return a record's key: its values under some names, those that are missing left out."""
    return json.dumps({n: record[n] for n in names if n in record}, sort_keys=True)


def short_key(record: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return a short name for a record's files."""
    return hashlib.sha256(key_of(record, names).encode()).hexdigest()[:16]


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold a lock file; false if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


# --- data sets


def data_folder(name: str, *, data: Path, work: Path) -> Path:
    """Return a data set's folder: DATA/NAME, or unpacked or made below WORK.

    Args:
        name: A folder or ``NAME.tar.xz`` in ``data``, or a sample task of the package.
        data: Where data sets are.
        work: Where to unpack.
    """
    if (data / name / "corpus.jsonl").exists():
        return data / name
    folder = work / "data" / name
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    if name in SAMPLES:
        from dptdr.data.sample import build_sample

        build_sample(name, out=folder)
        return folder
    with tarfile.open(data / f"{name}.tar.xz") as archive:
        archive.extractall(folder.parent, filter="data")
    return folder


# --- vectors of whole corpora


def vectors_of(data: Path, *, out: Path, load: Callable[[], Any]) -> Any:
    """Return the vector folder of a BEIR folder's passages, encoded if it is not complete."""
    from dptdr.search.vectors.documents import read_documents, source_of
    from dptdr.search.vectors.encoding import encode_folder
    from dptdr.search.vectors.folder import VectorFolder

    if not (out / "manifest.json").is_file():
        encode_folder(load(), read_documents(data), out=out, source=source_of(data))
    return VectorFolder(out)


def sampled(folder: Any, judged: Mapping[str, Any], count: int, *, seed: str) -> tuple[Any, Any]:
    """Return queries of a BEIR folder that are judged, at most so many, and their judgements."""
    chosen = sorted(judged)
    random.Random(seed).shuffle(chosen)
    kept = set(chosen[:count])
    queries = [query for query in folder.queries() if query.id in kept]
    return queries, {query.id: judged[query.id] for query in queries}


# --- systems in memory


def sentence_transformer(model: str = "minilm") -> Any:
    """Return an encoder, by name or folder, in sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    from dptdr.model.backbone import resolve

    return SentenceTransformer(str(resolve(model) or model), device="cpu")


def prompted(backbone: Any, *, seed: int, name: str | None = None, **settings: Any) -> Any:
    """Return an encoder with a deep prompt of random rows: as costly as a trained one."""
    from dptdr.config.methods import DeepPromptConfig
    from dptdr.model import Encoder
    from dptdr.model.methods import DeepPromptMethod

    config = DeepPromptConfig(initialisation="random", **settings)
    return Encoder(backbone, method=DeepPromptMethod(backbone, config, seed=seed), name=name)


def random_prompts(backbone: Any, count: int, *, prompt: int, seed: int) -> list[Any]:
    """Return prompts of random rows, as the server's registry keeps them."""
    import torch

    from dptdr.model.packing import PromptRows

    geometry, generator = backbone.geometry, torch.Generator().manual_seed(seed)
    like = next(backbone.model.parameters())
    shape = (2, geometry.layers, prompt, geometry.heads, geometry.head_dim)
    return [
        PromptRows(*(0.3 * torch.randn(shape, generator=generator)).to(like)) for _ in range(count)
    ]


# --- systems that take turns


def take_turns(
    systems: dict[str, Callable[[], Any]], *, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Run all systems in turn, ``rounds`` times; the first round warms up and does not count.

    A system that returns its own ``cpu`` and ``wall`` seconds (it runs in another process) is
    believed; the others are measured here.
    """
    times: dict[str, dict[str, list[float]]] = {n: {"cpu": [], "wall": []} for n in systems}
    for number in range(rounds + 1):
        order = list(systems.items())
        # Nobody always comes behind the same neighbour.
        random.Random(number).shuffle(order)
        for name, run in order:
            gc.collect()
            cpu, wall = time.process_time(), time.perf_counter()
            said = run()
            took = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
            if isinstance(said, dict):
                took = said
            if number:
                for clock, seconds in took.items():
                    times[name][clock].append(seconds)
    return times


def ratio(times: dict[str, Any], one: str, other: str, clock: str = "cpu") -> dict[str, float]:
    """Return the median over rounds of ``one`` over ``other``, and its range."""
    pairs = [a / b for a, b in zip(times[one][clock], times[other][clock], strict=True)]
    return {
        "median": round(statistics.median(pairs), 3),
        "low": round(min(pairs), 3),
        "high": round(max(pairs), 3),
    }


def ratio_text(ratio: Mapping[str, float]) -> str:
    """Return a ratio with its range."""
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


# --- values per query


def compact(values: Mapping[str, float]) -> Record:
    """Return values per query for a result file: rounded, in the order of the ids.

    The short hash of the ids says which lists may be paired.
    """
    ids = sorted(values)
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:8]
    return {"query_ids": digest, "per_query": [round(values[q], 4) for q in ids]}


def mean_per_query(records: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return each query's mean over records, such as seeds."""
    lists = [record["per_query"] for record in records]
    return [statistics.fmean(values) for values in zip(*lists, strict=True)]


def paired(own: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> Any:
    """Return the paired test of two systems, each query by its mean over some records."""
    from dptdr.evaluation import paired_test

    if own[0]["query_ids"] != other[0]["query_ids"]:
        raise ValueError("expected the same queries on both sides")
    a, b = (
        {f"{place:06}": value for place, value in enumerate(mean_per_query(side))}
        for side in (own, other)
    )
    return paired_test(a, b)


def difference(own: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> str:
    """Return a mean difference of two systems, each some records, with its p-value."""
    if not own or not other or own[0]["query_ids"] != other[0]["query_ids"] or own == other:
        return ""
    test = paired(own, other)
    return f"{test.mean_difference:+.4f}, p {p_text(test.p_randomisation)}"


def over_sets(pairs: Sequence[tuple[Sequence[Record], Sequence[Record]]]) -> tuple[float, str]:
    """Return the mean difference over sets, all of the same weight, and its p-value.

    Each set has a pair of systems, each some records; p is two-sided, under random signs.
    """
    import numpy as np

    from dptdr.evaluation.significance import randomisation_p

    apart = [np.subtract(*map(mean_per_query, pair)) for pair in pairs]
    whole = np.concatenate([each / each.size / len(pairs) for each in apart])
    return whole.sum(), p_text(randomisation_p(whole, permutations=20_000, seed=0))


def below(own: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether a paired test finds a system worse."""
    test = paired(own, other)
    return bool(test.mean_difference < 0 and test.p_randomisation < 0.05)


def p_text(p: float) -> str:
    """Return a p-value in four digits."""
    return f"{p:.4f}" if p >= 5e-5 else "< 0.0001"


# --- pages


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Return a mean, with the standard deviation where there are several values."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table in markdown."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def origin(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the section that says where the numbers were made."""
    return origins(f"commit {r['commit']}, {r['machine']}" for r in records if "commit" in r)


def origins(lines: Iterable[str]) -> list[str]:
    """Return that section from its lines, each once."""
    return ["", "## Origin", "", *(f"- {line}" for line in sorted(set(lines)))]


def made_with(record: Mapping[str, Any]) -> str:
    """Return what ``here`` put into a record, as a text."""
    return f"commit {record['commit']}, {record['cpu']}, {record['cores']} cores"


def kept_words(path: Path, heading: str = "## ") -> list[str]:
    """Return a page's lines before its first heading, which are written by hand."""
    return path.read_text(encoding="utf-8").partition(f"\n{heading}")[0].rstrip("\n").split("\n")


def kept_section(path: Path, heading: str, *, until: str = "") -> list[str]:
    """Return a page's lines from a heading on, or up to its table, which are written by hand."""
    _, found, rest = path.read_text(encoding="utf-8").partition(f"\n{heading}\n")
    text = rest.partition(f"\n{until}")[0] if until else rest
    return [heading, *text.rstrip("\n").split("\n")] if found else []


def fill_page(path: Path, blocks: Mapping[str, Sequence[str]]) -> None:
    """Put blocks of a page in their places, between ``<!-- NAME -->`` and ``<!-- end -->``."""
    text = path.read_text(encoding="utf-8")
    for name, lines in blocks.items():
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        _, _, after = rest.partition("<!-- end -->\n")
        text = "\n".join([f"{before}<!-- {name} -->", *lines, f"<!-- end -->\n{after}"])
    write_page(path, text.split("\n"))


def write_page(path: Path, lines: Iterable[str]) -> None:
    """Write a page of results."""
    path.write_text("\n".join(lines).rstrip("\n") + "\n", encoding="utf-8")
    print(path)
