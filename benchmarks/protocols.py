"""How fast Natural Questions' answer matching is: passages per minute, from file to accuracy.

Passages of 100 words are cut from real text in DPR's layout (``psgs_w100.tsv``), each listed by
a run with 100 passages per question. Half of the questions get an answer that occurs in one of
their passages. What is timed is what ``dptdr evaluate --protocol nq`` does after reading the run:
reading the passage file, matching in several processes, and computing the measures::

    python benchmarks/protocols.py --data FOLDER --work WORK --passages 1000000 --workers 1 2

``FOLDER`` is any BEIR folder; results/protocols.jsonl and results/protocols.md are written.
"""

import argparse
import contextlib
import itertools
import random
import time
from pathlib import Path

import _lib

PASSAGE_WORDS = 100
PASSAGES_OF_A_QUESTION = 100


def main() -> None:
    """Make the files, time the matching, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    _lib.add_options(parser, data=Path, work=Path, passages=1_000_000, workers=[1, 2], seed=0)
    _lib.add_options(parser, out=_lib.RESULTS)
    arguments = parser.parse_args()
    file = make_passages(arguments)
    answers, run, answered = make_run(file, seed=arguments.seed)
    rows = []
    for workers in arguments.workers:
        seconds, accuracy = timed(file, answers, run, workers=workers)
        rows.append(
            {
                "workers": workers,
                "seconds": round(seconds, 2),
                "passages": arguments.passages,
                "passages_per_minute": round(60 * arguments.passages / seconds),
                "top-100": accuracy,
            }
        )
        print(rows[-1], flush=True)
    result = {
        "command": (
            f"python benchmarks/protocols.py --data {arguments.data.name} --work WORK --passages "
            f"{arguments.passages} --workers {' '.join(map(str, arguments.workers))}"
        ),
        "commit": _lib.commit(),
        "machine": _lib.machine(),
        "seed": arguments.seed,
        "data": arguments.data.name,
        "questions": len(answers),
        "questions_with_an_answer_in_their_passages": answered,
        "rows": rows,
    }
    write(result, arguments.out)


def make_passages(arguments: argparse.Namespace) -> Path:
    """Write a passage file in DPR's layout; words in the data's own order, from changing starts."""
    from dptdr.io.beir import BeirFolder

    file: Path = arguments.work / f"psgs-{arguments.passages}.tsv"
    if file.exists():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    words = [
        word
        for passage in BeirFolder(arguments.data).passages()
        for word in passage.content.replace('"', "").split()
    ]
    starts = random.Random(arguments.seed)
    partial = file.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as handle:
        handle.write("id\ttext\ttitle\n")
        for number in range(1, arguments.passages + 1):
            start = starts.randrange(len(words) - PASSAGE_WORDS)
            handle.write(f"{number}\t{' '.join(words[start : start + PASSAGE_WORDS])}\tTitle\n")
    partial.rename(file)
    return file


def make_run(file: Path, *, seed: int) -> tuple[list, dict, int]:
    """Return prepared answers, a run that names every passage once, and how many are answered."""
    from dptdr.evaluation.protocols.answers import prepare_answer
    from dptdr.evaluation.protocols.dpr import read_passage_texts
    from dptdr.records import Hit

    draw = random.Random(seed + 1)
    answers, run, answered = [], {}, 0
    passages = read_passage_texts(file)
    while group := list(itertools.islice(passages, PASSAGES_OF_A_QUESTION)):
        found = []
        if len(answers) % 2 == 0:
            words = draw.choice(group)[1].split()
            start = draw.randrange(len(words) - 3)
            # A text without a single letter or digit can be no answer.
            with contextlib.suppress(ValueError):
                text = " ".join(words[start : start + draw.randint(1, 3)])
                found.append(prepare_answer(text, matching="string"))
                answered += 1
        found.append(prepare_answer(f"no such answer {len(answers)}", matching="string"))
        run[str(len(answers))] = [Hit(key, -float(rank)) for rank, (key, _) in enumerate(group)]
        answers.append(tuple(found))
    return answers, run, answered


def timed(file: Path, answers: list, run: dict, *, workers: int) -> tuple[float, float]:
    from dptdr.evaluation.protocols.dpr import evaluate_nq, read_passage_texts

    began = time.perf_counter()
    result = evaluate_nq(
        run,
        answers,
        query_ids=[str(number) for number in range(len(answers))],
        passages=read_passage_texts(file),
        workers=workers,
    )
    return time.perf_counter() - began, result.measures["top-100"]


def write(result: dict, out: Path) -> None:
    _lib.write_records(out / "protocols.jsonl", [result])
    lines = [
        *_lib.kept_words(_lib.RESULTS / "protocols.md", "| "),
        "",
        *_lib.table(
            ["processes", "passages", "seconds", "passages a minute", "top-100"],
            [
                [str(n), f"{passages:,}", f"{seconds:.1f}", f"{rate:,}", f"{accuracy:.4f}"]
                for n, seconds, passages, rate, accuracy in (r.values() for r in result["rows"])
            ],
        ),
    ]
    best = max(row["passages_per_minute"] for row in result["rows"])
    reached = "reached" if best >= 1_000_000 else "not reached"
    lines += [
        "",
        f"Goal, a million passages a minute on two cores: {reached}.",
        "",
        f"Made by `{result['command']}` at commit {result['commit']} on {result['machine']}, seed "
        f"{result['seed']}, text of {result['data']}.",
    ]
    _lib.write_page(out / "protocols.md", lines)


if __name__ == "__main__":
    main()
