"""A tiny data set whose queries and passages share words, so that training has something to do."""

from pathlib import Path

from dptdr.io.beir import write_beir
from dptdr.records import Passage, Query
from helpers.tiny import VOCABULARY

WORDS = [word for word in VOCABULARY if word.isalpha() and len(word) > 2]


def tiny_data(path: Path, *, train: int = 24, test: int = 6) -> Path:
    """Write a BEIR folder: query i holds two words, passage i the same two and a third."""
    count = train + test
    pairs = [
        (WORDS[i % len(WORDS)], WORDS[(3 * i + 1) % len(WORDS)], WORDS[(7 * i + 2) % len(WORDS)])
        for i in range(count)
    ]
    write_beir(
        path,
        passages=[Passage(f"p{i}", f"{b} {c} {a} {c}") for i, (a, b, c) in enumerate(pairs)],
        queries=[
            Query(f"q{i}", f"{a} {b} {c}" if i % 2 else f"{c} {a}")
            for i, (a, b, c) in enumerate(pairs)
        ],
        qrels={
            "train": {f"q{i}": {f"p{i}": 1} for i in range(train)},
            "test": {f"q{i}": {f"p{i}": 1} for i in range(train, count)},
        },
        meta={"name": "tiny"},
    )
    return path
