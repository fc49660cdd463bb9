# Each target sets up what it needs, in .venv. PYTHON=python3.12 make … chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

.PHONY: demo test test-all test-python lint bench clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# The whole line, from nothing to a searchable index and a report.
demo: .venv/ready
	rm -rf $(DEMO)
	$(BIN)/dualenc data scenes $(DEMO)/shards
	$(BIN)/dualenc fit --config scenes
	$(BIN)/dualenc embed --encoder $(DEMO)/encoder --data $(DEMO)/shards/test --out $(DEMO)/store
	$(BIN)/dualenc index build $(DEMO)/store $(DEMO)/index
	$(BIN)/dualenc eval retrieval --encoder $(DEMO)/encoder --data $(DEMO)/store --composition \
		--zeroshot $(DEMO)/shards/colour $(DEMO)/shards/shape --out $(DEMO)
	$(BIN)/dualenc search $(DEMO)/index "a small red circle left of a large blue square" -k 5 --grid $(DEMO)/hits.png
	@echo "report: $(DEMO)/report.html"

test: .venv/ready
	$(BIN)/python -m pytest -n 2 -m "not full"

test-all: .venv/ready
	HYPOTHESIS_PROFILE=full $(BIN)/python -m pytest -n 2

# The import, command-line and contract tests under each interpreter that is found; without torch where it has no wheel.
test-python: .venv/ready
	$(BIN)/python tests/each_python.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready
	$(BIN)/python benchmarks/line.py
	$(BIN)/python benchmarks/table.py

clean:
	rm -rf .venv runs dist build
