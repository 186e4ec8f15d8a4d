# `make run` and `make test` install everything that they need, `make run` less; a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# What litert-torch uses to convert, without what it does not use: among that is xdsl, which wants an old typing-extensions
# and so an old pydantic.
LITERT := litert-torch litert-converter ai-edge-quantizer torchao jax jaxlib opt_einsum immutabledict
# A process for each core; each takes up to 2 GB. A file is run by one process, in the order of tests/conftest.py.
TESTS := .venv/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
RUN_STAMP := .venv/.installed-run

.PHONY: setup run test test-slow lint format docs dist bench gpu gpu-wheels clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -c constraints.txt $(LITERT)
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
	$(BIN)/python -m benchmarks.store
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.losses
	$(BIN)/python -m benchmarks.whole

# Needs a CUDA GPU, and no network: it runs with .venv where there is one, else with $(PYTHON) and the wheels that
# `make gpu-wheels` has put into .wheels/ elsewhere. See docs/performance.md.
GPU_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu:
	if test ! -x $(BIN)/python && ls .wheels/*.whl >/dev/null 2>&1; then $(PYTHON) -m pip install --quiet --no-index \
	  --no-deps --upgrade --target .wheels/site .wheels/*.whl; fi
	PYTHONPATH=src:.wheels/site $(GPU_PYTHON) -m benchmarks.gpu

WHEELS ?= annotated-types filelock plotly pydantic pydantic-core torchdistill typing-extensions typing-inspection
WHEELS_PYTHON ?= 3.12
gpu-wheels:
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: -c constraints.txt \
	  --python-version $(WHEELS_PYTHON) --implementation cp --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
	  --platform manylinux_2_28_x86_64 -d .wheels $(WHEELS)

clean:
	rm -rf .venv .wheels runs site dist
