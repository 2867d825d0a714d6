"""Tables and plots of comparisons."""

from dptdr.evaluation.compare import compare_reports
from dptdr.evaluation.comparison_report import comparison_table, markdown_table, plot_comparison
from dptdr.evaluation.report import EvaluationReport


def _report(system, values):
    return EvaluationReport(
        system=system,
        data="d",
        split="test",
        judgements_fingerprint="j",
        protocol="ir_measures",
        measures={"R@100": 0.0, "nDCG@10": sum(values) / len(values)},
        per_query={
            name: {str(index): value for index, value in enumerate(values)}
            for name in ("R@100", "nDCG@10")
        },
        queries=len(values),
    )


def test_markdown_table_aligns_columns_and_escapes_bars():
    assert markdown_table([["system", "n"], ["a|b", "1,000"]]) == [
        "| system |     n |",
        "| ------ | ----: |",
        "| a\\|b   | 1,000 |",
    ]


def test_comparison_table_puts_the_usual_measures_first_and_names_the_baseline():
    comparison = compare_reports([_report("base", [0.0, 0.0, 0.0]), _report("new", [1.0, 0.5, 0])])
    table = comparison_table(comparison)
    assert comparison.measures == ("nDCG@10", "R@100")
    assert "Against base:" in table
    assert table.startswith("d, test: 3 queries\n")
    assert "| base   |  0.0000 | 0.0000 |" in table


def test_plot_has_the_same_bytes_each_time(tmp_path):
    comparison = compare_reports([_report("base", [0.0, 0.0, 0.5]), _report("new", [1.0, 0.5, 0])])
    plot_comparison(tmp_path / "a.png", comparison)
    plot_comparison(tmp_path / "b.png", comparison)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").stat().st_size > 5_000
