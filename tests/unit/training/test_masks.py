import torch

from dptdr.training.masks import Example, InBatchCandidates, text_hash

CPU = torch.device("cpu")


def row(positive, known, teacher=None):
    return Example(positive, frozenset(map(text_hash, known)), teacher or {})


def masks(columns, *rows):
    made = columns.masks(rows, device=CPU)
    return {name: tensor.int().tolist() for name, tensor in made._asdict().items()}


def test_known_positives_of_a_query_do_not_count_as_its_negatives():
    columns = InBatchCandidates([text_hash(text) for text in ("a", "b", "c")])
    made = masks(columns, row([0], ["a", "c"]), row([1], ["b"]))
    assert made["positive"] == [[1, 0, 0], [0, 1, 0]]
    assert made["ignored"] == [[1, 0, 1], [0, 1, 0]]


def test_of_a_passage_that_two_processes_brought_only_the_first_counts():
    # This process brought the columns 2 and 3; "a" was brought by the first process as well.
    columns = InBatchCandidates([text_hash(text) for text in ("a", "b", "a", "c")], offset=2)
    made = masks(columns, row([0], ["a"], {0: 5.0, 1: 7.0}))
    assert made["positive"] == [[1, 0, 0, 0]]
    assert made["ignored"] == [[1, 0, 1, 0]]
    assert made["scored"] == [[1, 0, 0, 1]]
    assert made["teacher"] == [[5, 0, 0, 7]]


def test_known_positives_that_another_process_brought_are_masked():
    columns = InBatchCandidates([text_hash(text) for text in ("x", "b", "a")], offset=1)
    made = masks(columns, row([1], ["a", "x"]))
    assert made["positive"] == [[0, 0, 1]]
    assert made["ignored"] == [[1, 0, 1]]


def test_text_hash_is_the_same_in_every_process_and_fits_a_signed_word():
    # made_by: hashlib.blake2b of the UTF-8 bytes, 8 bytes little-endian, shifted right by one.
    assert text_hash("Grüße") == 5283224025213719939
    assert text_hash("a") != text_hash("b")
