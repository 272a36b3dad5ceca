# Two commands do it all on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
# As requires-python in pyproject.toml has it; uv would say so late and less clearly.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
# The lock's hash names the environment it made: a second call compares two small files and goes on.
STAMP := .venv/.installed

.PHONY: demo test test-slow bench lint format lock clean

$(STAMP): requirements.lock
	@python=$$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON)); $$python -c '$(FITS)' 2> /dev/null || \
		{ echo "Python 3.11 or 3.12 is needed, but $$python says: $$($$python --version 2>&1 | tail -n 1)." \
			"'make PYTHON=python3.12' chooses another; remove .venv first if there is one." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing the locked packages into .venv (several GB the first time)" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)  ## train, evaluate, export and register five small networks on drawn figures
	@$(BIN)/python -m pose.cli train-all --profile demo

test: $(STAMP)  ## everything but what is marked slow
	@$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)  ## what needs longer: several Ray workers, a real server
	@$(BIN)/python -m pytest -q -m slow

bench: $(STAMP)  ## ratios: engine against a bare loop, loader against per-image decoding
	@$(BIN)/python -m benchmarks.engine --recipe modern --threads 1
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m dvc repro prepare@demo
	@$(BIN)/python -m benchmarks.loader --data data/prepared/demo
	@if [ -z "$$POSE_MIRROR" ]; then echo "the loader on real images is left out: POSE_MIRROR is not set"; \
	else for name in lspet coco; do \
		PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m dvc repro prepare@$$name && $(BIN)/python -m benchmarks.loader \
			--data data/prepared/$$name --source "$$(ls -td data/unpacked/$$name-* | head -n 1)" || exit; done; fi
	@$(BIN)/python -m benchmarks.decoding
	@$(BIN)/python -m benchmarks.pose_nms
	@$(BIN)/python -m benchmarks.oks_nms
	@$(BIN)/python -m benchmarks.oks
	@$(BIN)/python -m benchmarks.onnx
	@$(BIN)/python -m benchmarks.grouping
	@$(BIN)/python -m benchmarks.partition

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: $(STAMP)  ## pin what pyproject.toml asks for, with hashes
	@$(BIN)/uv pip compile pyproject.toml --all-extras --universal --generate-hashes --no-header --no-annotate \
		--quiet -o requirements.lock

clean:  ## what can be made again, but not the data nor the models
	@rm -rf .mypy_cache .ruff_cache .pytest_cache build *.egg-info
