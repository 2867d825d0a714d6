import pytest

from dptdr.errors import ConfigError, DataError

TWO = """
[defaults.train]
steps = 7
batch_size = 4
[stages.a]
do = "train"
data = "DATA"
[stages.b]
do = "evaluate"
data = "DATA"
task = "@a"
"""


def test_stage_takes_defaults_of_its_kind_and_its_own_settings_win(read):
    recipe = read(TWO + '[stages.c]\ndo = "train"\ndata = "DATA"\nsteps = 9\n')
    assert recipe.stage("a").settings["steps"] == 7
    assert recipe.stage("c").settings["steps"] == 9
    assert "steps" not in recipe.stage("b").settings


def test_set_changes_values_by_dotted_keys_with_toml_types(read):
    recipe = read(
        TWO,
        "defaults.train.steps=3",
        "stages.a.learning_rate=1e-3",
        "stages.a.backbone=some/folder/here",
        "machine.processes=8",
        "stages.a.matryoshka=[8, 16]",
    )
    settings = recipe.stage("a").settings
    assert (settings["steps"], settings["learning_rate"]) == (3, 1e-3)
    assert settings["backbone"] == "some/folder/here"
    assert settings["matryoshka"] == [8, 16]
    assert recipe.machine.processes == 8


def test_all_problems_are_reported_at_once(read):
    text = """
    surprise = 1
    [machine]
    device = 3
    [assume]
    teraflop = 1.0
    [defaults.trian]
    steps = 1
    [stages.a]
    do = "train"
    data = "DATA"
    stesp = 4
    batch_size = "many"
    device = "cuda"
    [stages.b]
    do = "train"
    steps = -1
    data = "@nowhere"
    [stages.c]
    do = "dance"
    [stages.d]
    do = "evaluate"
    data = "@a"
    task = "@a"
    bm25 = true
    [stages.e]
    do = "mine"
    data = "DATA"
    source = ["bm26", "bm25,ranks=9-3"]
    [stages."Bad Name"]
    do = "sample"
    name = "python-code"
    """
    with pytest.raises(ConfigError) as caught:
        read(text)
    message = str(caught.value)
    for part in (
        "nothing was started",
        "unknown table or key 'surprise'",
        "[machine] device: expected str, got 3",
        "[assume] teraflop: unknown setting",
        "[defaults.trian]: unknown setting, did you mean 'train'?",
        "stage 'a' (train): stesp: unknown setting, did you mean 'steps'?",
        "stage 'a' (train): batch_size: expected a whole number, got 'many'",
        "stage 'a' (train): device: is set by `dptdr run` or in [machine]",
        "stage 'b' (train): steps: expected at least 1, got -1",
        "stage 'b' (train), data: no stage 'nowhere'",
        "stage 'c': expected do = one of",
        "stage 'd' (evaluate): expected one of task, backbone, bm25, run",
        "stage 'd' (evaluate), data: takes data, 'a' gives task",
        "stage 'e' (mine): source 'bm26'",
        "expected ranks as FIRST-LAST",
        "stage 'Bad Name': expected a name",
    ):
        assert part in message


def test_lists_make_a_stage_for_each_combination(read):
    recipe = read(
        """
        [lists]
        set = ["one", "two"]
        length = [4, 8]
        [vary.two.train]
        min_grade = 2
        [stages.t]
        do = "train"
        for = ["set", "length"]
        data = "data/{set}"
        prompt_length = "{length}"
        [stages.e]
        do = "evaluate"
        for = { set = ["two"] }
        data = "data/{set}"
        task = "@t-{set}-8"
        """
    )
    names = [stage.name for stage in recipe.stages]
    assert names == ["t-one-4", "t-one-8", "t-two-4", "t-two-8", "e-two"]
    assert recipe.stage("t-two-8").settings == {
        "data": "data/two",
        "prompt_length": 8,
        "min_grade": 2,
    }
    assert "min_grade" not in recipe.stage("t-one-8").settings
    assert recipe.stage("e-two").references[0].stage == "t-two-8"


ROUNDS = """
[stages.base]
do = "train"
data = "DATA"
[stages.unm]
do = "rounds"
rounds = 3
data = "DATA"
START
mine = { source = ["bm25", "@current,ranks=2-9"], seed = 1 }
train = { steps = 5, from_task = "@current" }
"""


def test_rounds_mine_with_the_retriever_of_the_round_before(read):
    recipe = read(ROUNDS.replace("START", ""))
    assert [stage.name for stage in recipe.stages] == [
        "base",
        "unm-mine-1",
        "unm-train-1",
        "unm-mine-2",
        "unm-train-2",
        "unm-mine-3",
        "unm",
    ]
    sources = [recipe.stage(f"unm-mine-{n}").settings["source"] for n in (1, 2, 3)]
    assert sources == [
        ["bm25"],
        ["bm25", "task:@unm-train-1,ranks=2-9"],
        ["bm25", "task:@unm-train-2,ranks=2-9"],
    ]
    assert "from_task" not in recipe.stage("unm-train-1").settings
    assert recipe.stage("unm").settings["from_task"] == "@unm-train-2"
    assert recipe.stage("unm").settings["negatives"] == "@unm-mine-3"


def test_rounds_may_start_from_a_retriever(read):
    recipe = read(ROUNDS.replace("START", 'start = "task:@base"'))
    assert recipe.stage("unm-mine-1").settings["source"][1] == "task:@base,ranks=2-9"
    assert recipe.stage("unm-train-1").settings["from_task"] == "@base"
    with pytest.raises(ConfigError, match="expected start = 'task:"):
        read(ROUNDS.replace("START", 'start = "@base"'))


def test_stages_stand_after_those_that_they_need_whatever_the_file_says(read):
    recipe = read(
        '[stages.z]\ndo = "evaluate"\ndata = "DATA"\ntask = "@a"\n'
        '[stages.a]\ndo = "train"\ndata = "DATA"\n'
    )
    assert [stage.name for stage in recipe.stages] == ["a", "z"]


def test_circles_are_refused(read):
    with pytest.raises(ConfigError, match="need one another: a -> b -> a"):
        read(
            '[stages.a]\ndo = "train"\ndata = "DATA"\nfrom_task = "@b"\n'
            '[stages.b]\ndo = "train"\ndata = "DATA"\nfrom_task = "@a"\n'
        )


def test_settings_without_effect_and_unknown_choices_are_refused(read):
    base = '[stages.a]\ndo = "train"\ndata = "DATA"\n'
    with pytest.raises(ConfigError, match="prompt_length: has no effect with method 'full'"):
        read(base + 'method = "full"\nprompt_length = 4\n')
    with pytest.raises(ConfigError, match="precision: expected one of float32, bfloat16"):
        read(base + 'precision = "float8"\n')
    with pytest.raises(ConfigError, match="objectives"):
        read('[stages.a]\ndo = "pretrain"\ndata = "DATA"\nobjectives = "mlm,rhyme"\n')


def test_broken_toml_names_the_line_and_a_wrong_change_is_named(read):
    with pytest.raises(DataError, match="line 2"):
        read("[stages.a]\ndo = \n")
    with pytest.raises(ConfigError, match="--set steps: expected key=value"):
        read(TWO, "steps")
    with pytest.raises(ConfigError, match="at least one stage"):
        read("name = 'empty'")


def test_table_needs_its_reports(read):
    table = """
    [stages.t]
    do = "table"
    measures = ["nDCG@10"]
    columns = ["x"]
    baseline = "C"
    rows = [{ system = "A", report = "@gone-{column}" }]
    """
    with pytest.raises(ConfigError, match="baseline: no row has the system 'C'"):
        read(table)
    with pytest.raises(ConfigError, match="no stage 'gone-x'"):
        read(table.replace('baseline = "C"', ""))


def test_some_stages_may_come_first_with_what_they_need(read):
    text = "".join(
        f'[stages.{name}]\ndo = "train"\ndata = "DATA"\n{more}'
        for name, more in (("a", ""), ("b", ""), ("c", 'from_task = "@b"\n'))
    )
    recipe = read('first = ["c"]\n' + text)
    assert [stage.name for stage in recipe.stages] == ["b", "c", "a"]
    with pytest.raises(ConfigError, match="first: expected a list of stages"):
        read('first = ["x"]\n' + text)
