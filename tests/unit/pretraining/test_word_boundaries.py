import itertools

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from dptdr.errors import BackboneError
from dptdr.pretraining.word_boundaries import Words
from helpers.pretraining import SENTENCES, byte_level_tokenizer, sentencepiece_tokenizer
from helpers.tiny import tiny_tokenizer


def pieces(tokenizer, text):
    """The text's words, each as the text of its tokens."""
    ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"])
    starts = Words(tokenizer, vocabulary=len(tokenizer)).starts(ids)
    bounds = [*np.flatnonzero(starts), len(ids)]
    return [
        tokenizer.decode(ids[begin:end].tolist()).strip()
        for begin, end in itertools.pairwise(bounds)
    ]


def test_wordpiece_words_are_the_pre_tokenizers():
    tokenizer = tiny_tokenizer()
    text = "painting slowly the bigger boats"
    encoded = tokenizer(text, add_special_tokens=False)
    ids = np.asarray(encoded["input_ids"])
    words = Words(tokenizer, vocabulary=len(tokenizer))
    assert words.kind == "wordpiece"
    numbers = encoded.word_ids()
    expected = [n == 0 or numbers[n] != numbers[n - 1] for n in range(len(ids))]
    assert words.starts(ids).tolist() == expected
    assert expected.count(False) >= 3


def test_byte_level_words_end_at_spaces_and_signs():
    tokenizer = byte_level_tokenizer()
    assert Words(tokenizer, vocabulary=len(tokenizer)).kind == "byte-level"
    assert pieces(tokenizer, "misunderstandings of rivers, (2,000 naïve) ones!") == [
        "misunderstandings", "of", "rivers", ",", "(", "2", ",", "000", "naïve", ")", "ones", "!",
    ]  # fmt: skip


def test_byte_level_rule_of_wordpiece_would_be_wrong():
    # The trap: '##' never occurs, so that every token would be a word.
    tokenizer = byte_level_tokenizer()
    ids = tokenizer("misunderstandings", add_special_tokens=False)["input_ids"]
    starts = Words(tokenizer, vocabulary=len(tokenizer)).starts(np.asarray(ids))
    assert len(ids) > 1
    assert starts.tolist() == [True] + [False] * (len(ids) - 1)


def test_sentencepiece_words_end_at_spaces_and_signs():
    tokenizer = sentencepiece_tokenizer()
    assert Words(tokenizer, vocabulary=len(tokenizer)).kind == "sentencepiece"
    assert pieces(tokenizer, "hello wordings, worldly (seafarers)") == [
        "hello", "wordings", ",", "worldly", "(", "seafarers", ")",
    ]  # fmt: skip


@pytest.mark.parametrize("make", [tiny_tokenizer, byte_level_tokenizer, sentencepiece_tokenizer])
def test_special_tokens_are_never_masked_nor_drawn(make):
    tokenizer = make()
    words = Words(tokenizer, vocabulary=len(tokenizer))
    ids = np.asarray(tokenizer(SENTENCES[2])["input_ids"])
    maskable = words.maskable(ids)
    assert not maskable[0]
    assert not maskable[-1]
    assert maskable[1:-1].any()
    assert not set(words.ordinary.tolist()) & set(tokenizer.all_special_ids)
    assert words.starts(ids)[:2].all()


def test_ids_that_the_encoder_does_not_know_are_not_drawn():
    tokenizer = tiny_tokenizer()
    words = Words(tokenizer, vocabulary=40)
    assert words.ordinary.max() == 39


def test_older_bpe_marks_the_end_of_a_word():
    vocabulary = {"<unk>": 0, "lo": 1, "w</w>": 2, "low</w>": 3, "l": 4, "o": 5}
    bpe = models.BPE(vocabulary, [("l", "o")], unk_token="<unk>", end_of_word_suffix="</w>")
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    words = Words(wrapped, vocabulary=6)
    assert words.kind == "end-of-word"
    assert words.starts(np.asarray([1, 2, 3, 1, 2])).tolist() == [True, False, True, True, False]


def test_unknown_kind_is_refused_in_words():
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    with pytest.raises(
        BackboneError,
        match=r"expected a tokenizer that marks words as WordPiece .* contrastive",
    ):
        Words(wrapped, vocabulary=2)
