import os
import signal

import pytest

from dptdr.config.pretraining import PretrainingConfig
from dptdr.errors import TrainingError
from dptdr.io.beir import BeirFolder
from dptdr.model import Backbone
from dptdr.pretraining.document_sampling import TRAIN, Documents, Reader
from dptdr.pretraining.pretrain import pretrain
from dptdr.pretraining.readahead import ReadAhead
from helpers.pretraining import small_config


@pytest.fixture(scope="module")
def reader(corpus, plain):
    config = small_config()
    return Reader(
        Backbone.load(str(plain)), Documents(BeirFolder(corpus), config), config, masks=True
    )


def rows_of(reader):
    return lambda step: [int(row) for row in reader.documents.train[step : step + 3]]


@pytest.fixture(scope="module")
def ahead(reader):
    """Workers shared by the tests; starting them costs more than all of their work."""
    made = ReadAhead(reader, rows_of(reader), stream=TRAIN, steps=6, processes=2)
    yield made
    made.close()


def test_batches_are_those_read_in_place(reader, ahead):
    for step in [0, 1, 2, 5, 3, 4, 5]:
        expected = reader.read(rows_of(reader)(step), step=step, stream=TRAIN)
        assert ahead.read(step) == expected


def test_killed_reader_is_one_clear_error(ahead):
    # The last test of these workers.
    ahead.read(0)
    for process in list(ahead._pool._processes.values()):
        os.kill(process.pid, signal.SIGKILL)
        process.join()

    def read_on():
        for step in range(1, 6):
            ahead.read(step)

    with pytest.raises(TrainingError, match="a prefetch worker died"):
        read_on()


@pytest.mark.learning
def test_number_of_readers_changes_no_weight(tmp_path, corpus, plain):
    weights = []
    for readers in (0, 2):
        out = tmp_path / f"with-{readers}"
        pretrain(
            BeirFolder(corpus),
            out,
            backbone=Backbone.load(str(plain)),
            config=small_config(max_steps=3, readers=readers),
        )
        weights.append((out / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_readers_are_no_part_of_what_a_run_is():
    assert PretrainingConfig(readers=3).identity() == PretrainingConfig().identity()
    assert PretrainingConfig(readers=-1).problems() == ["readers: expected at least 0, got -1"]
