# Every target makes its own .venv and installs what it needs.
PYTHON ?=
BIN := .venv/bin
READY := .venv/.ready
DEMO_SECONDS ?=
SEEDS ?= 1000
JOBS ?= 2
CHAOS_SECONDS ?= 600
FUZZ_SECONDS ?= 60
CHAOS_SEED ?=
CHAOS_REGISTRIES ?= 3
export DEMO_SECONDS
# Three at a time, a file each: most of them wait for processes. Those that take longest come first: see tests/conftest.py.
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: install compiled demo test laws check lint bench convergence simulate simulate-scale chaos fuzz clean

$(READY): requirements.txt pyproject.toml
	@PYTHON="$(PYTHON)" ./scripts/environment.sh

install: $(READY)

# Where PYTHONDONTWRITEBYTECODE is set, each process would compile the project anew: a third of its start.
compiled: $(READY)
	@$(BIN)/python -m compileall -q agent benchmarks federation registry scripts tests

demo: compiled
	@exec $(BIN)/python scripts/demo.py

# What takes long by itself is left to `check`.
test: compiled
	$(PYTEST) -m "not slow"

# Every law of the federation's core on 5,000 examples: minutes, where `test` takes seconds.
laws: $(READY)
	HYPOTHESIS_PROFILE=full $(BIN)/python -m pytest tests/unit/federation --timeout 1800

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint compiled
	$(PYTEST)

bench: compiled
	$(BIN)/python -m benchmarks.heartbeat
	$(BIN)/python -m benchmarks.discover
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.watching
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.merge
	$(BIN)/python -m benchmarks.failover
	$(BIN)/python -m benchmarks.agent
	$(BIN)/python -m benchmarks.security
	$(BIN)/python -m benchmarks.convergence --small

# Five registries with 100,000 nodes: some minutes, on a machine with nothing else to do.
convergence: compiled
	$(BIN)/python -m benchmarks.convergence

simulate: compiled
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --jobs $(JOBS)

simulate-scale: compiled
	$(BIN)/python -m benchmarks.federation_scale

# Real processes and stores, broken from a schedule; a random one unless CHAOS_SEED says which.
chaos: compiled
	$(BIN)/python -m tests.chaos --seconds $(CHAOS_SECONDS) --registries $(CHAOS_REGISTRIES) \
		$(if $(CHAOS_SEED),--seed $(CHAOS_SEED))

# Whatever reads bytes of strangers, with bytes that are guided by what they reach. Linux only.
fuzz: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r tests/fuzz/requirements.txt
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info
