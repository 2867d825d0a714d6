"""Runs, judgements, measures, official protocols and paired tests, without torch."""

from dptdr.evaluation.differences import QueryDifference, query_differences
from dptdr.evaluation.measures import DEFAULT_MEASURES, Evaluation, evaluate
from dptdr.evaluation.significance import PairedTest, holm, paired_test
from dptdr.io.trec import read_qrels, read_run, write_run

__all__ = [
    "DEFAULT_MEASURES",
    "Evaluation",
    "PairedTest",
    "QueryDifference",
    "evaluate",
    "holm",
    "paired_test",
    "query_differences",
    "read_qrels",
    "read_run",
    "write_run",
]
