# `make run` and `make test` install everything that they need, `make run` less; a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# a process for each core; each takes up to 2 GB
TESTS := .venv/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile
RUN_STAMP := .venv/.installed-run

.PHONY: setup run test test-slow lint format docs dist bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(RUN_STAMP) $(STAMP)

$(RUN_STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[deploy]'
	touch $(RUN_STAMP)

run: $(RUN_STAMP)
	$(BIN)/tutelage quickstart

test: setup
	$(TESTS) -m 'not slow'

test-slow: setup
	$(TESTS) -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "built into site/; to read it: python3 -m http.server --directory site"

dist: setup
	$(BIN)/python -m build --no-isolation

bench: setup
	for pair in lite2-lite0 b3-b1 small; do $(BIN)/python -m benchmarks.speed --pair $$pair || exit 1; done
	$(BIN)/python -m benchmarks.study
	$(BIN)/python -m benchmarks.loading
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.losses
	$(BIN)/python -m benchmarks.whole

clean:
	rm -rf .venv runs site dist
