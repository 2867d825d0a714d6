import numpy as np
import pytest

from dptdr.errors import BackboneError, ConfigError, DataError
from dptdr.io.beir import BeirFolder, write_beir
from dptdr.model import Backbone, Pooling
from dptdr.pretraining.document_sampling import Documents, Reader
from dptdr.records import Passage
from helpers.pretraining import small_config
from helpers.tiny import tiny_backbone, tiny_model, tiny_tokenizer


def reader(corpus, backbone=None, *, masks=True, **settings):
    config = small_config(**settings)
    return Reader(backbone or tiny_backbone(), Documents(BeirFolder(corpus), config), config,
                  masks=masks)  # fmt: skip


def test_held_out_documents_are_never_trained_on(corpus):
    documents = Documents(BeirFolder(corpus), small_config())
    assert len(documents.dev) == 5
    assert sorted([*documents.dev, *documents.train]) == list(range(60))


def test_corpus_smaller_than_the_batch_is_refused(corpus):
    with pytest.raises(
        ConfigError,
        match=r"60 documents, 5 of them held out; need .* and 56 \(batch_size\) for training; use",
    ):
        Documents(BeirFolder(corpus), small_config(batch_size=56))


def test_broken_line_of_the_corpus_is_named(tmp_path):
    write_beir(tmp_path / "d", passages=[Passage("a", "x")], queries=[], qrels={}, meta={})
    with (tmp_path / "d" / "corpus.jsonl").open("a", encoding="utf-8") as handle:
        handle.write('{"_id": "b"}\n')
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 2, field 'text'"):
        Documents(BeirFolder(tmp_path / "d"), small_config())


def test_masked_and_true_tokens_are_those_of_one_cut(corpus):
    made = reader(corpus, short_span_ratio=0.5)
    tokenizer = made.text_format.tokenizer
    rows = [int(row) for row in made.documents.train[:40]]
    passages = made.documents.passages(rows)
    for passage, document in zip(passages, made.read(rows, step=3), strict=True):
        whole = tokenizer(passage.content, add_special_tokens=False)["input_ids"]
        for text in document.texts:
            true = list(text.ids)
            for place, target in zip(text.places, text.targets, strict=True):
                true[place] = target
            assert (true[0], true[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
            inner = true[1:-1]
            assert any(
                whole[n : n + len(inner)] == inner for n in range(len(whole) - len(inner) + 1)
            )
            assert text.places
            assert set(text.places) <= set(range(1, len(true) - 1))


def test_short_documents_give_one_text_and_empty_ones_teach_nothing(tmp_path):
    texts = ["red boat"] * 3 + [""] + ["river stone tree leaf root seed water fire"] * 26
    write_beir(
        tmp_path / "d",
        passages=[Passage(f"p{n}", text) for n, text in enumerate(texts)],
        queries=[],
        qrels={},
        meta={},
    )
    made = reader(tmp_path / "d", min_span_tokens=4)
    short, empty, long = made.read([0, 3, 4], step=0)
    assert [len(short.texts), len(empty.texts), len(long.texts)] == [1, 1, 2]
    assert (len(empty.texts[0].ids), empty.texts[0].targets) == (2, [])
    assert [text.side for text in long.texts] == ["query", "passage"]


def test_copies_of_a_document_have_one_owner(tmp_path):
    texts = ["river stone tree leaf"] * 2 + ["water fire wind snow"] * 28
    write_beir(
        tmp_path / "d",
        passages=[Passage(f"p{n}", text) for n, text in enumerate(texts)],
        queries=[],
        qrels={},
        meta={},
    )
    one, two, other = reader(tmp_path / "d").read([0, 1, 2], step=0)
    assert one.owner == two.owner != other.owner


def test_steps_draw_other_spans_and_masks(corpus):
    made = reader(corpus)
    rows = [int(row) for row in made.documents.train]
    assert made.read(rows, step=0) == made.read(rows, step=0)
    assert made.read(rows, step=0) != made.read(rows, step=1)
    alone = [made.read([row], step=4)[0] for row in rows]
    assert alone == made.read(rows, step=4)


def test_prefixes_stand_before_the_text_and_are_not_masked(corpus):
    backbone = Backbone(
        tiny_model(),
        tiny_tokenizer(),
        name="tiny",
        pooling=Pooling(max_tokens=64, query_prefix="who what ", passage_prefix="the "),
    )
    made = reader(corpus, backbone)
    tokenizer = made.text_format.tokenizer
    before = {"query": tokenizer("who what")["input_ids"][:-1], "passage": tokenizer("the")[
        "input_ids"][:-1]}  # fmt: skip
    for document in made.read([0, 1, 2, 3, 4, 5], step=0):
        for text in document.texts:
            lead = before[text.side]
            assert text.ids[: len(lead)] == lead
            assert min(text.places) >= len(lead)


def test_tokenizer_without_mask_token_is_refused_where_masks_are_needed(corpus):
    tokenizer = tiny_tokenizer()
    tokenizer.mask_token = None
    backbone = Backbone(tiny_model(), tokenizer, name="maskless", pooling=Pooling(max_tokens=64))
    with pytest.raises(
        BackboneError, match=r"'maskless': .* need a tokenizer with a mask token; .* contrastive"
    ):
        reader(corpus, backbone)
    (document,) = reader(corpus, backbone, masks=False).read([1], step=0)
    assert all(text.targets == [] for text in document.texts)


def test_span_that_does_not_fit_the_encoder_is_refused(corpus):
    with pytest.raises(ConfigError, match=r"span_tokens: expected at most 62 .* got 63"):
        reader(corpus, span_tokens=63)


def test_memory_does_not_grow_with_the_texts(tmp_path):
    import tracemalloc

    texts = ("river stone tree leaf " * 500 for _ in range(200))
    write_beir(
        tmp_path / "d",
        passages=(Passage(f"p{n}", text) for n, text in enumerate(texts)),
        queries=[],
        qrels={},
        meta={},
    )
    size = (tmp_path / "d" / "corpus.jsonl").stat().st_size
    tracemalloc.start()
    documents = Documents(BeirFolder(tmp_path / "d"), small_config())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(documents.train) == 195
    assert peak < size / 10


def test_corpus_without_pairs_is_told(tmp_path):
    write_beir(
        tmp_path / "d",
        passages=[Passage(f"p{n}", "red boat red boat") for n in range(30)],
        queries=[],
        qrels={},
        meta={},
    )
    # Two halves with the same tokens are one span.
    assert not reader(tmp_path / "d", min_span_tokens=2).has_pairs()
    assert np.all(reader(tmp_path / "d").documents.train < 30)
