# Everything runs in .venv; each target sets up what it needs from plain python3 and pip.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: install quickstart test learning bench check docs clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

quickstart: install
	$(BIN)/dptdr quickstart --out quickstart

test: install
	$(BIN)/python -m pytest -m "not learning and not gpu"

learning: install
	$(BIN)/python -m pytest -m learning --timeout 1800

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Each benchmark writes its own page under results/; together they take hours on two cores.
bench: install
	for file in benchmarks/encoding.py benchmarks/mining.py benchmarks/search.py \
		benchmarks/serving.py; do $(BIN)/python $$file || exit 1; done

docs: install
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv quickstart site
