# make demo, make test: each makes .venv if it is missing, installs the pinned packages into it, then does its job.
VENV := .venv
ARGS :=
MINUTES := 10
SEED := 0
INSTALLED := $(VENV)/.installed

.PHONY: help setup demo test soak lint

help:
	@echo "make demo   train a small model with SFT, then GRPO, and watch its accuracy climb (ARGS='key=value ...')"
	@echo "make test   run the tests (ARGS='tests/unit -k recipe')"
	@echo "make setup  make the environment alone (PYTHON=/path/to/python3.11, ROUTE=cpu or gpu)"
	@echo "make soak   kill processes of runs at random for MINUTES (default 10; SEED=0) and check that nothing is lost"
	@echo "make lint   ruff"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml requirements/cpu.txt requirements/gpu.txt tools/setup.sh
	@bash tools/setup.sh $(VENV)

demo: $(INSTALLED)
	@$(VENV)/bin/rlpipe run recipes/arithmetic/pipeline.yaml $(ARGS)

test: $(INSTALLED)
	@$(VENV)/bin/python -m pytest $(ARGS)

soak: $(INSTALLED)
	@$(VENV)/bin/python tests/chaos/soak.py --minutes $(MINUTES) --seed $(SEED) $(ARGS)

lint: $(INSTALLED)
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
