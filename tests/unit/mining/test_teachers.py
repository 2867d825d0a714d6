"""Teachers: encoders, files and cross-encoders."""

import json
import shutil

import numpy as np
import pytest

from dptdr.errors import NegativesError
from dptdr.mining.corpus import CorpusTable
from dptdr.mining.runtable import import_run
from dptdr.mining.teachers import CrossEncoderTeacher, EncoderTeacher, FileTeacher, Pair
from dptdr.records import Passage


class _Vectors:
    def __init__(self, rows):
        self.rows = np.array(rows, dtype=np.float32)

    def gather(self, rows):
        return self.rows[rows]


def test_encoder_teacher_gives_the_mean_dot_product_of_its_members():
    asked = []

    def _encode(texts):
        asked.append(list(texts))
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    one = (_encode, _Vectors([[1, 0], [0, 1]]), "one")
    two = (lambda texts: np.ones((len(texts), 1), dtype=np.float32), _Vectors([[3], [5]]), "two")
    teacher = EncoderTeacher([one, two], name="both")
    pairs = [Pair("q", "ab", 0, ""), Pair("r", "abcd", 1, ""), Pair("q", "ab", 1, "")]
    assert teacher.score(pairs) == [(2 + 3) / 2, (1 + 5) / 2, (1 + 5) / 2]
    # A query is encoded once however many passages it meets.
    assert asked == [["ab", "abcd"]]
    assert teacher.fingerprint != EncoderTeacher([one], name="one").fingerprint
    assert teacher.fingerprint != EncoderTeacher([two, one], name="both").fingerprint


def test_file_teacher_looks_scores_up_and_names_a_missing_pair(tmp_path):
    corpus = CorpusTable.build([Passage("a", "x"), Passage("b", "y")])
    (tmp_path / "scores").write_text("q Q0 b 1 -2.5 t\n")
    table = import_run(tmp_path / "table", run=tmp_path / "scores", corpus=corpus, fingerprint="f")
    teacher = FileTeacher(table, name="file:scores", corpus=corpus)
    assert teacher.score([Pair("q", "", 1, "")]) == [-2.5]
    with pytest.raises(
        NegativesError, match="file:scores has no score for query 'q' and passage 'a'"
    ):
        teacher.score([Pair("q", "", 0, "")])
    with pytest.raises(NegativesError, match="no score for query 'r' and passage 'b'"):
        teacher.score([Pair("r", "", 1, "")])


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    """A tiny random cross-encoder, saved as sentence-transformers reads it."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("teacher") / "tiny-teacher"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "fox", "blue", "sea"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_cross_encoder_teacher_scores_as_the_model_itself(cross_encoder):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    teacher = CrossEncoderTeacher(str(cross_encoder))
    pairs = [Pair("q", "red fox", 0, "blue sea"), Pair("q", "red fox", 1, "red red fox sea")]
    scores = teacher.score(pairs)
    tokenizer = AutoTokenizer.from_pretrained(cross_encoder)
    model = AutoModelForSequenceClassification.from_pretrained(cross_encoder).eval()
    for pair, score in zip(pairs, scores, strict=True):
        tokens = tokenizer(pair.query, pair.content, return_tensors="pt")
        with torch.no_grad():
            logit = model(**tokens).logits[0, 0]
        assert score == pytest.approx(float(torch.sigmoid(logit)), abs=1e-6)
    assert scores[0] != scores[1]
    assert teacher.name == "cross-encoder:tiny-teacher"
    assert teacher.needs_texts


def test_cross_encoder_teacher_of_another_tokenizer_is_refused(cross_encoder, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(cross_encoder, folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary.update({f"word{number}": len(vocabulary) + number for number in range(50)})
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(NegativesError, match="of another model"):
        CrossEncoderTeacher(str(folder))


def test_cross_encoder_teacher_that_is_none_is_refused(cross_encoder, tmp_path):
    with pytest.raises(NegativesError, match=r"teacher .* cannot be loaded as a cross-encoder"):
        CrossEncoderTeacher(str(tmp_path))
    folder = tmp_path / "three"
    shutil.copytree(cross_encoder, folder)
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(cross_encoder, num_labels=3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    with pytest.raises(NegativesError, match="expected one output, got 3"):
        CrossEncoderTeacher(str(folder))
