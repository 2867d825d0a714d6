import json

import numpy as np
import pytest

from dptdr.errors import VectorsError
from dptdr.records import Hit, Query
from dptdr.search.rerank import cross_encoder, rerank

TEXTS = {"a": "one", "b": "three words here", "c": "two words", "d": "x y z w"}
RUN = {"q": [Hit("a", 0.9), Hit("b", 0.8), Hit("c", 0.7), Hit("d", 0.6)], "e": []}
QUERIES = [Query("q", "text"), Query("e", "none"), Query("other", "not in the run")]


def contents(ids):
    return [TEXTS[name] for name in ids]


def count_words(query, texts):
    return np.array([len(text.split()) for text in texts])


def test_the_top_is_ordered_by_the_scorer_and_the_rest_stays_below():
    ranked = rerank(
        RUN,
        queries=QUERIES,
        contents=contents,
        scorer=count_words,
        top=3,
    )
    assert ranked == {
        "q": [Hit("b", 3.0), Hit("c", 2.0), Hit("a", 1.0), Hit("d", 0.0)],
        "e": [],
    }


def test_equal_scores_keep_the_old_order():
    ranked = rerank(
        RUN, queries=QUERIES, contents=contents, scorer=lambda query, texts: [1.0] * len(texts)
    )
    assert [hit.passage_id for hit in ranked["q"]] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("scorer", "top", "message"),
    [
        (lambda query, texts: [1.0], 3, "expected 3 scores, got 1"),
        (lambda query, texts: [1.0, float("nan"), 2.0], 3, "returned NaN for passage 'b'"),
        (
            lambda query, texts: ["3", "1", "2"],
            3,
            r"one number .*, got \['3', '1', '2'\]",
        ),
        (lambda query, texts: [3.0, None, 1.0], 3, "one number per passage from the scorer, got"),
        (count_words, 0, "at least 1 hit to re-rank, got 0"),
    ],
)
def test_a_scorer_that_does_not_fit_is_refused(scorer, top, message):
    with pytest.raises(VectorsError, match=message):
        rerank(RUN, queries=QUERIES, contents=contents, scorer=scorer, top=top)


def test_a_cross_encoder_of_random_weights_scores_every_pair(tmp_path):
    pytest.importorskip("sentence_transformers", reason="the extra 'crossencoder' is not installed")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = {
        word: place for place, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "text", "x"])
    }
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    )  # fmt: skip
    config = BertConfig(
        vocab_size=6, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    fast.save_pretrained(tmp_path)
    ranked = rerank(
        RUN, queries=QUERIES, contents=contents, scorer=cross_encoder(str(tmp_path)), top=4
    )
    scores = [hit.score for hit in ranked["q"]]
    assert sorted(hit.passage_id for hit in ranked["q"]) == ["a", "b", "c", "d"]
    assert scores == sorted(scores, reverse=True)


def test_a_cross_encoder_that_is_not_there_says_so(tmp_path):
    pytest.importorskip("sentence_transformers", reason="the extra 'crossencoder' is not installed")
    with pytest.raises(VectorsError, match="cannot be loaded as a cross-encoder"):
        cross_encoder(str(tmp_path / "nothing"))


def test_an_encoder_without_a_head_is_no_cross_encoder(tmp_path):
    pytest.importorskip("sentence_transformers")
    from helpers.tiny import save_tiny

    with pytest.raises(VectorsError, match="expected a sequence classifier with all weights"):
        cross_encoder(str(save_tiny(tmp_path / "bert")))
    # As a checkpoint that lost its head, which its config still names.
    config = tmp_path / "bert" / "config.json"
    named = json.loads(config.read_text()) | {"architectures": ["BertForSequenceClassification"]}
    config.write_text(json.dumps(named | {"num_labels": 1}))
    with pytest.raises(VectorsError, match=r"all weights, got none for .*classifier"):
        cross_encoder(str(tmp_path / "bert"))
    weights = tmp_path / "bert" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(VectorsError, match="bert' cannot be loaded as a cross-encoder"):
        cross_encoder(str(tmp_path / "bert"))
