# Everything runs in .venv; each target sets up what it needs from plain python3 and pip.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# Many tests start Python again; without bytecode files, each start would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install quickstart test learning bench check docs clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

quickstart: install
	$(BIN)/dptdr quickstart --out quickstart

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not learning and not gpu" \
		--numprocesses auto --dist worksteal --durations 25

learning: install
	$(BIN)/python -m pytest -m learning --timeout 7200

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# On the sample task, so that no other data is needed; each benchmark's --help says how to run it on
# real data. Together they take an hour or more on two cores.
bench: install
	test -d bench/data || $(BIN)/dptdr data sample python-code --out bench/data
	$(BIN)/python benchmarks/quality.py run --sets python-code python-api \
		--method bm25 bare deep-prompt full --out bench/quality.jsonl
	$(BIN)/python benchmarks/encoding.py run --data bench/data --work bench/encoding \
		--json bench/encoding.jsonl
	$(BIN)/python benchmarks/search.py run --data bench/data --work bench/search \
		--json bench/search.jsonl
	$(BIN)/python benchmarks/mining.py scale --data bench/data --work bench/mining
	$(BIN)/python benchmarks/serving.py prepare --data bench/data --work bench/serving
	$(BIN)/python benchmarks/serving.py run prompts tasks lora memory backends joining \
		--work bench/serving --tasks 100 --texts 120 --out bench/serving.jsonl

docs: install
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv quickstart bench site
