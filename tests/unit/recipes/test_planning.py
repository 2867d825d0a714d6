import shutil

import pytest

from dptdr.recipes.report import plan_json, plan_lines

CHAIN = """
[machine]
device = "cuda"
threads = 3
[stages.mined]
do = "mine"
data = "DATA"
source = ["bm25"]
[stages.tuned]
do = "train"
data = "DATA"
negatives = "@mined"
steps = 4
[stages.again]
do = "train"
data = "DATA"
negatives = "@mined"
steps = 4
[stages.vectors]
do = "encode"
data = "DATA"
task = "@tuned"
"""


def keys(plan):
    return {planned.stage.name: planned.place.key for planned in plan.stages}


def test_key_changes_with_settings_and_inputs_and_all_that_follows(plan, data):
    first = keys(plan(CHAIN))
    assert keys(plan(CHAIN)) == first
    assert first["tuned"] == first["again"]
    steps = keys(plan(CHAIN, "stages.tuned.steps=5"))
    assert [name for name in first if steps[name] != first[name]] == ["tuned", "vectors"]
    mined = keys(plan(CHAIN, "stages.mined.seed=1"))
    assert all(mined[name] != first[name] for name in first)
    with (data / "corpus.jsonl").open("a", encoding="utf-8") as handle:
        handle.write('{"_id": "new", "title": "", "text": "new"}\n')
    changed = keys(plan(CHAIN))
    assert all(changed[name] != first[name] for name in first)


def test_names_machine_and_folders_do_not_enter_the_key(plan, data):
    first = keys(plan(CHAIN))
    other = keys(plan(CHAIN, "machine.device=cpu", "machine.processes=4", "machine.threads=1"))
    assert other == first
    renamed = keys(plan(CHAIN.replace("mined", "negatives-of-bm25")))
    assert renamed["tuned"] == first["tuned"]
    moved = data.parent / "moved"
    shutil.copytree(data, moved)
    elsewhere = keys(plan(CHAIN.replace("DATA", str(moved))))
    assert elsewhere == first


def test_command_lines_carry_places_machine_and_resume(plan, data, tmp_path):
    planned = {item.stage.name: item for item in plan(CHAIN).stages}
    tuned = planned["tuned"]
    words = tuned.arguments
    assert tuned.command_line.startswith(f"dptdr train {data} ")
    assert words[words.index("--negatives") + 1] == str(planned["mined"].place.output)
    assert words[words.index("--out") + 1] == str(tuned.place.output)
    assert words[words.index("--device") + 1] == "cuda"
    assert words[words.index("--threads") + 1] == "3"
    assert "--resume" in words
    assert str(tuned.place.folder).startswith(str(tmp_path / "work" / "store" / "train-"))
    assert "--resume" not in planned["vectors"].arguments


def test_only_takes_a_stage_and_those_that_it_needs(plan, data):
    assert list(keys(plan(CHAIN, only=["tuned"]))) == ["mined", "tuned"]


def test_missing_files_are_listed_and_planned_all_the_same(plan):
    found = plan(CHAIN)
    assert len(found.stages) == 4
    assert len(found.missing) == 1
    assert found.missing[0].endswith("data")
    assert "would refuse to start" in "\n".join(plan_lines(found))


def test_sizes_follow_from_counts_and_assumptions(plan, data):
    text = (
        CHAIN.replace('device = "cuda"\nthreads = 3', "processes = 2")
        + "[assume]\nteraflops = 0.001\nquery_tokens = 10\npassage_tokens = 20\n"
        "[defaults.train]\nbatch_size = 8\nprompt_length = 4\n"
    )
    found = {item["name"]: item for item in plan_json(plan(text))["stages"]}
    # MiniLM: 6 layers of 384; 12 * 6 * 384^2 weights in them.
    body = 12 * 6 * 384**2
    assert found["tuned"]["disk_bytes"] == 4 * 2 * 6 * 384 * 4
    # 4 steps of 8 queries with 2 passages: 10 + 2 * 20 tokens each; forward and one backward.
    flops = 2 * 2 * body * 4 * 8 * 50
    assert found["tuned"]["hours"] == pytest.approx(flops / (0.001e12 * 2) / 3600)
    assert found["vectors"]["what"] == "30 vectors of 384 numbers"
    assert found["vectors"]["hours"] == pytest.approx(2 * body * 30 * 20 / 0.001e12 / 3600)
