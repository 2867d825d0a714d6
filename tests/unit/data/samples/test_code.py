from pathlib import Path

from dptdr.data.sample.code import code_pairs
from dptdr.data.sample.python_source import SourceFile


def pairs(tmp_path: Path, source: str) -> dict[str, tuple[str, str]]:
    file = tmp_path / "module.py"
    file.write_text(source, encoding="utf-8")
    return {
        pair.id: (pair.query, pair.passage)
        for pair in code_pairs([SourceFile("pack.module", file)])
    }


def test_query_and_source_are_told_apart(tmp_path: Path):
    found = pairs(
        tmp_path,
        '''
class Table:
    @staticmethod
    def total(prices):
        """Add up all
        of the prices.

        Second paragraph.
        """
        # A comment stays.
        result = sum(price.amount for price in prices)

        return round(result, 2)
''',
    )

    assert found == {
        "pack.module.Table.total": (
            "Add up all of the prices.",
            "@staticmethod\n"
            "def total(prices):\n"
            "    # A comment stays.\n"
            "    result = sum(price.amount for price in prices)\n"
            "    return round(result, 2)",
        )
    }


def test_a_class_keeps_its_own_lines_and_the_heads_of_its_methods(tmp_path: Path):
    found = pairs(
        tmp_path,
        '''
class Shop(Base):
    """A place that sells things."""

    open_hours = ("09:00", "18:00")

    def sell(self, item,
             price):
        """Sell one item to somebody."""
        # Hidden with the body.
        self.till.append((item, price, self.clock.now()))
''',
    )

    assert found["pack.module.Shop"] == (
        "A place that sells things.",
        "class Shop(Base):\n"
        '    open_hours = ("09:00", "18:00")\n'
        "    def sell(self, item,\n"
        "             price):",
    )
    assert "self.till" in found["pack.module.Shop.sell"][1]


def test_no_docstring_of_an_inner_definition_leaks(tmp_path: Path):
    found = pairs(
        tmp_path,
        '''
def outer(values):
    """Make a function that scales."""
    def inner(value):
        """Scale one of the values."""
        return value / max(values) * len(values)
    return inner
''',
    )

    assert "Scale one" not in found["pack.module.outer"][1]
    assert "Scale one" not in found["pack.module.outer.inner"][1]


def test_empty_bodies_short_bodies_and_docstrings_on_a_line_with_code_are_left_out(tmp_path: Path):
    found = pairs(
        tmp_path,
        '''
def abstract(self):
    """Return the size of the thing."""
    raise NotImplementedError("a subclass must say what the size of it is")
def short(self):
    """Return the size of the thing."""
    return 1
def joined(self): "Return the size of it."; return self.size_of_the_thing_in_bytes()
def unit(self):
    """Return the size of this."""; return self.size_of_the_thing_in_bytes_and_more()
''',
    )

    assert list(found) == ["pack.module.unit"] or not found


def test_a_long_source_is_cut_at_a_line(tmp_path: Path):
    body = "".join(f"    value_{number} = compute({number})\n" for number in range(100))
    found = pairs(tmp_path, f'def long():\n    """Compute a lot of values."""\n{body}')

    passage = found["pack.module.long"][1]
    assert 1400 < len(passage) <= 1500
    assert passage.endswith(")")
