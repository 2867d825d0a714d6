import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from dptdr.data.beir import BeirFolder, write_beir
from dptdr.records import Passage, Query

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
ids = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r"), min_size=1, max_size=8
).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(
    passages=st.lists(st.builds(Passage, id=ids, text=texts, title=texts), max_size=6),
    queries=st.lists(st.builds(Query, id=ids, text=texts), max_size=6),
    qrels=st.dictionaries(ids, st.dictionaries(ids, st.integers(-2, 9), min_size=1), max_size=4),
)
def test_what_is_written_is_what_is_read(passages, queries, qrels):
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "data"
        write_beir(path, passages=passages, queries=queries, qrels={"test": qrels}, meta={})

        folder = BeirFolder(path)
        assert list(folder.passages()) == passages
        assert list(folder.queries()) == queries
        assert folder.qrels("test") == qrels
