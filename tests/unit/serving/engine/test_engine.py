import copy
import threading
import time

import numpy as np
import pytest

from dptdr.errors import ServingError
from dptdr.model.bundle import load_task
from dptdr.model.encoder import Limits
from dptdr.serving.engine.batching import BatchLimits, QueueFull
from dptdr.serving.engine.engine import Engine
from dptdr.serving.engine.results import Draining, EngineSettings, RequestTimeout
from dptdr.serving.forward import Forward
from helpers.serving import Held, sentence, wait_for, write_bundle
from helpers.tiny import tiny_backbone


def test_encode_each_task_and_side_equals_its_encoder(engine, registry, bundle):
    texts = [sentence(n, seed=n) for n in (3, 30, 1, 12, 12)]
    expected = {}
    for seed, sharing in enumerate(("tied", "untied", "query-only")):
        path = bundle(f"t{seed}", seed=seed, sharing=sharing, prompt_length=3 + seed)
        registry.add(f"t{seed}", path)
        encoder = load_task(path, backbone=tiny_backbone("bert"))
        expected[f"t{seed}", "query"] = encoder.encode_queries(texts)
        expected[f"t{seed}", "passage"] = encoder.encode_passages(texts)

    futures = {
        (task, side): engine.submit(texts, version=registry.resolve(task), side=side)
        for task, side in expected
    }

    for key, future in futures.items():
        np.testing.assert_allclose(future.result(30).vectors, expected[key], atol=2e-5)


def test_submit_says_tokens_and_times(engine, registry):
    done = engine.submit(["the cat", "red"], version=registry.bare, side="query").result(30)

    assert done.tokens == [4, 3]
    assert 0 <= done.waited_seconds <= done.seconds < 30


def test_encode_odd_texts_get_vectors(engine):
    odd = [
        "",
        " ",
        "\x00",
        "𝔘𝔫𝔦 \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
        "x" * 9999,
    ]

    vectors = engine.encode(odd, task="backbone", side="query")

    assert vectors.shape == (5, 32)
    assert np.isfinite(vectors).all()
    assert engine.encode([], task="backbone", side="query").shape == (0, 32)


def test_encode_many_threads_get_their_own_vectors(engine, registry, bundle):
    for seed in range(4):
        registry.add(f"t{seed}", bundle(f"t{seed}", seed=seed))
    names = ["backbone", "t0", "t1", "t2", "t3"]
    texts = [[sentence(1 + (7 * i + j) % 20, seed=i + j) for j in range(5)] for i in range(20)]
    alone = {
        (i, name): engine.encode(texts[i], task=name, side="query")
        for i in range(20)
        for name in names
    }
    wrong = []

    def ask(name):
        for i in range(20):
            made = engine.encode(texts[i], task=name, side="query")
            if not np.allclose(made, alone[i, name], atol=2e-5):
                wrong.append((i, name))

    threads = [threading.Thread(target=ask, args=(name,)) for name in names * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def small_batches(**limits):
    return EngineSettings(batch=BatchLimits(batch_tokens=8, **limits))


def test_submit_a_full_queue_refuses_and_says_when_to_come_back(registry):
    settings = small_batches(queue_tokens=60, tokens_per_second=10.0)
    with Engine(registry, settings=settings) as engine, Held(engine) as held:
        taken = [engine.submit([sentence(9)], version=registry.bare, side="query")]
        held.entered.wait(60)

        def fill():
            for _ in range(20):
                taken.append(engine.submit([sentence(9)], version=registry.bare, side="query"))

        with pytest.raises(QueueFull, match="tokens and about") as caught:
            fill()

        assert len(taken) >= 3
        assert caught.value.retry_after_seconds >= 1.0
        held.release.set()
        for future in taken:
            assert future.result(60).vectors.shape == (1, 32)


def test_submit_what_waits_too_long_fails_alone(registry):
    settings = small_batches(tokens_per_second=1e6)
    with Engine(registry, settings=settings) as engine, Held(engine) as held:
        first = engine.submit([sentence(9)], version=registry.bare, side="query")
        held.entered.wait(60)
        late = engine.submit(
            [sentence(9)] * 3, version=registry.bare, side="query", timeout_seconds=0.01
        )
        other = engine.submit([sentence(9)], version=registry.bare, side="query")
        wait_for(lambda: engine.waiting_tokens >= 40)
        time.sleep(0.02)
        held.release.set()

        with pytest.raises(RequestTimeout, match="timed out in the queue"):
            late.result(60)
        assert first.result(60).vectors.shape == (1, 32)
        assert other.result(60).vectors.shape == (1, 32)


def test_cancel_a_request_leaves_the_queue_at_once(registry):
    with Engine(registry, settings=small_batches()) as engine, Held(engine) as held:
        first = engine.submit([sentence(9)], version=registry.bare, side="query")
        held.entered.wait(60)
        given_up = engine.submit([sentence(9)] * 50, version=registry.bare, side="query")
        wait_for(lambda: engine.waiting_tokens == 550)

        assert given_up.cancel()

        assert engine.waiting_tokens == 0
        held.release.set()
        assert first.result(60).vectors.shape == (1, 32)


def test_stop_finishes_what_was_taken_and_refuses_what_comes(registry):
    engine = Engine(registry, settings=small_batches()).start()
    with Held(engine) as held:
        futures = [
            engine.submit([sentence(9)], version=registry.bare, side="query") for _ in range(5)
        ]
        held.entered.wait(60)
        stopping = threading.Thread(target=engine.stop)
        stopping.start()
        wait_for(lambda: not engine.ready)

        with pytest.raises(Draining, match="starting or stopping"):
            engine.submit(["late"], version=registry.bare, side="query")

        held.release.set()
        stopping.join(60)
    assert all(future.done() and future.result().vectors.shape == (1, 32) for future in futures)


def test_stop_after_its_time_fails_what_is_left(registry):
    engine = Engine(registry, settings=small_batches()).start()
    with Held(engine) as held:
        futures = [
            engine.submit([sentence(9)], version=registry.bare, side="query") for _ in range(9)
        ]
        held.entered.wait(60)

        threading.Timer(0.5, held.release.set).start()
        assert not engine.stop(timeout_seconds=0.1)

        with pytest.raises(Draining, match="stopped before"):
            futures[-1].result(1)


def test_a_row_that_cannot_be_computed_fails_alone(tmp_path, registry, bundle):
    # Bundles of earlier versions have limits without regard to the prompt.
    limits = Limits(max_query_tokens=64, max_passage_tokens=64)
    folder = bundle("s", position="shifted", prompt_length=30, limits=limits)
    registry.add("shifted", folder)
    with Engine(registry) as engine:
        long, short = sentence(62), sentence(3)
        bad = engine.submit([long], version=registry.resolve("shifted"), side="query")
        good = engine.submit([short], version=registry.resolve("shifted"), side="query")
        bare = engine.submit([long], version=registry.bare, side="query")

        with pytest.raises(Exception, match="needs position"):
            bad.result(30)
        assert np.isfinite(good.result(30).vectors).all()
        assert np.isfinite(bare.result(30).vectors).all()


def test_submit_no_text_is_a_mistake_of_the_caller(engine, registry):
    with pytest.raises(ValueError, match="at least one text"):
        engine.submit([], version=registry.bare, side="query")


def test_check_passes_on_mixtures_of_all_tasks(engine, registry, bundle):
    for seed in range(5):
        registry.add(f"t{seed}", bundle(f"t{seed}", seed=seed, sharing="untied"))

    report = engine.check([sentence(n, seed=n) for n in (2, 5, 20)], rows=30)

    assert report.passed
    assert report.difference < 1e-5
    assert report.tasks >= 6


@pytest.mark.parametrize("fault", ["wrong", "broken"])
def test_check_notices_a_wrong_vector_and_survives_its_own_failure(registry, bundle, fault):
    registry.add("medical", bundle())
    seen = []
    settings = EngineSettings(check_every=1)
    with Engine(registry, settings=settings, on_check=seen.append) as engine:
        engine.encode(["the red boat"], task="medical", side="query")
        # A check runs after the answer, in the engine's thread.
        wait_for(lambda: len(seen) == 1)
        real = engine.forward
        engine.forward = copy.copy(real)
        if fault == "wrong":
            engine.forward.vectors = lambda rows: real.vectors(
                [row._replace(prompt=None) for row in rows]
            )
        else:
            engine.forward.single = lambda row: 1 / 0
        engine.encode(["the red boat"], task="medical", side="query")
        wait_for(lambda: len(seen) == 2)
        engine.forward = real
        made = engine.encode(["the red boat"], task="medical", side="query")
        engine.stop()

    assert [report.passed for report in seen] == [True, False, True]
    assert np.isfinite(made).all()


def test_on_batch_reports_what_was_in_it(registry, bundle):
    registry.add("medical", bundle())
    seen = []
    with Engine(registry, on_batch=seen.append) as engine:
        engine.encode(["the red boat", "a dog"], task="medical", side="query")
        engine.stop()

    assert sum(report.texts for report in seen) == 2
    assert sum(report.tokens for report in seen) == 9
    assert all(report.tasks == 1 for report in seen)


def test_tasks_change_while_requests_run_and_every_vector_is_one_version(registry, tmp_path):
    backbone = registry.backbone
    text = [sentence(8)]
    paths = [write_bundle(tmp_path / f"b{seed}", backbone, seed=seed) for seed in range(3)]
    expected = [
        load_task(path, backbone=tiny_backbone("bert")).encode_queries(text)[0] for path in paths
    ]
    registry.add("medical", paths[0])
    stop = threading.Event()
    wrong, errors, answered = [], [], [0]

    def ask():
        while not stop.is_set():
            try:
                made = engine.encode(text, task="medical", side="query")[0]
            except ServingError as error:
                errors.append(error)
                continue
            answered[0] += 1
            if not any(np.allclose(made, one, atol=2e-5) for one in expected):
                wrong.append(made)

    with Engine(registry) as engine:
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for round_number in range(12):
            registry.add("medical", paths[round_number % 3], replace=True)
            if round_number > 1:
                registry.remove("medical", version=str(round_number - 1))
            registry.rollback("medical") if round_number % 4 == 3 else None
        stop.set()
        for thread in threads:
            thread.join()

    assert (wrong, errors) == ([], [])
    assert answered[0] > 10


def test_engine_works_padded(tmp_path):
    from dptdr.serving.tasks.registry import TaskRegistry

    backbone = tiny_backbone("mpnet")
    registry = TaskRegistry(Forward(backbone), state=tmp_path / "state")
    path = write_bundle(tmp_path / "b", backbone)
    registry.add("medical", path)
    texts = [sentence(n, seed=n) for n in (3, 9, 1)]

    with Engine(registry) as engine:
        made = engine.encode(texts, task="medical", side="query")

    expected = load_task(path, backbone=backbone).encode_queries(texts)
    np.testing.assert_allclose(made, expected, atol=2e-5)
