# Everything goes through .venv, which the first target that needs it makes.
PYTHON ?= python3
BIN := .venv/bin
SPEECH ?= speech
PORT ?= 3000
SECONDS ?= 60
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test slow-test cluster-test faults fuzz audit lint dev lock clean bench-storage bench-speech bench-api bench-text bench-ingest bench-report bench-scale api-test

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: .venv/.demo ## the whole pipeline on recorded speech: no key, no cloud
	@$(BIN)/audio-assets demo

test: .venv/.dev ## the tests
	$(BIN)/pytest -n 2 --dist loadfile

# The soak measures a throughput: nothing runs beside it.
slow-test: .venv/.slow-test ## the tests that take minutes
	$(BIN)/pytest -m slow -n 2 --dist loadfile --ignore audio_assets_tests/faults/test_soak.py
	$(BIN)/pytest -m slow audio_assets_tests/faults/test_soak.py

cluster-test: .venv/.cluster-test ## the tests on a Ray cluster of two nodes and on Postgres
	$(BIN)/pytest -m "cluster or not slow" audio_assets_tests/cluster audio_assets_tests/resources/test_metrics.py

faults: .venv/.slow-test ## the fault campaign: what was tried, what survived (over an hour)
	FAULT_BLOWS=10 SOAK_OBJECTS=20000 $(BIN)/python -m audio_assets_tests.faults.campaign

fuzz: .venv/.fuzz ## fuzz what reads strangers' bytes, SECONDS=60 for each of four readers
	$(BIN)/python -m audio_assets_tests.fuzz $(SECONDS)

audit: .venv-audit/.done ## known vulnerabilities of what the lock files name
	.venv-audit/bin/python .ci/audit.py

api-test: .venv/.dev .venv-api/.done ## the API engine against real OpenAI-compatible servers
	$(BIN)/pytest -m "slow or not slow" audio_assets_tests/speech/test_real_servers.py

lint: .venv/.dev ## formatting, lint, types, Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

dev: .venv/.demo ## Dagster's UI on http://127.0.0.1:3000
	DAGSTER_HOME="$$($(BIN)/python -m audio_assets.dagster_home)" DAGSTER_DISABLE_TELEMETRY=1 \
		$(BIN)/dagster dev -h 127.0.0.1 -p $(PORT) -w workspace.yaml

bench-storage: .venv/.bench ## storage against the stock DuckDB IO manager
	$(BIN)/python -m benchmarks.storage

bench-speech: .venv/.bench ## local Whisper against its peers; SPEECH=DIR holds manifest.tsv
	$(BIN)/python -m benchmarks.speech $(SPEECH)

bench-text: .venv/.dev ## tokens against a bare spaCy loop, corpus summary, report of 10,000 files
	$(BIN)/python -m benchmarks.text

bench-api: .venv/.dev ## the API engine against a loopback server: concurrency, rate limits, CPU, bytes
	$(BIN)/python -m benchmarks.api

bench-report: .venv/.dev ## the report of 10,000 files: time to build it, time until Chromium can use it
	$(BIN)/python -m benchmarks.report

bench-ingest: .venv/.bench ## listing and downloads against boto3's paginator and s5cmd
	$(BIN)/python -m benchmarks.ingest

bench-scale: .venv/.cluster-test ## two nodes over one, overhead, start, and what a run leaves in Postgres
	$(BIN)/python -m benchmarks.scale

lock: ## refresh the hash-locked requirements (needs uv)
	uv pip compile -q --universal --no-strip-extras --python-version 3.10 --generate-hashes --no-header \
		--extra dev -o requirements-dev.txt pyproject.toml
	uv pip compile -q --universal --no-strip-extras --python-version 3.10 --generate-hashes --no-header \
		-c requirements-dev.txt --extra demo -o requirements-demo.txt pyproject.toml
	uv pip compile -q --universal --no-strip-extras --python-version 3.10 --generate-hashes --no-header \
		-c requirements-dev.txt -o requirements.txt pyproject.toml
	uv pip compile -q --universal --no-strip-extras --python-version 3.10 --generate-hashes --no-header \
		-c requirements-dev.txt --extra bench -o requirements-bench.txt pyproject.toml
	uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-header \
		--group api-test -o requirements-api-test.txt
	uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-header \
		--group slow-test -o requirements-slow-test.txt
	uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-header \
		--group fuzz -o requirements-fuzz.txt
	uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-header \
		--group audit -o requirements-audit.txt
	# The one package that the cluster needs older.
	sed '/^sqlalchemy==/,/^    # via/d' requirements-dev.txt > .cluster-constraints.part
	uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-header \
		-c .cluster-constraints.part --group cluster-test -o requirements-cluster-test.txt
	uv pip compile -q --universal --no-strip-extras --python-version 3.10 --generate-hashes --no-header \
		-c .cluster-constraints.part --extra ray --extra postgres -o requirements-cluster.txt pyproject.toml
	rm .cluster-constraints.part

clean: ## remove what was installed and found; data/ stays
	rm -rf .venv .venv-api .venv-audit fuzz-corpus fuzz-findings build *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is older than Python 3.10; name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv .venv || \
		{ echo "error: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

.venv/.demo: .venv/bin/python requirements-demo.txt pyproject.toml
	@echo "Installing into .venv (about two minutes) …"
	@test -f .venv/.dev || $(PIP_INSTALL) --require-hashes -r requirements-demo.txt
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.dev: .venv/bin/python requirements-dev.txt pyproject.toml
	@echo "Installing into .venv (about two minutes) …"
	@$(PIP_INSTALL) --require-hashes -r requirements-dev.txt
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@ .venv/.demo

.venv/.bench: .venv/.dev requirements-bench.txt
	@$(PIP_INSTALL) --require-hashes -r requirements-bench.txt
	@touch $@

.venv/.slow-test: .venv/.dev requirements-slow-test.txt
	@$(PIP_INSTALL) --require-hashes -r requirements-slow-test.txt
	@touch $@

.venv/.fuzz: .venv/.dev requirements-fuzz.txt
	@$(PIP_INSTALL) --require-hashes -r requirements-fuzz.txt
	@touch $@

.venv-audit/.done: requirements-audit.txt
	@$(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-audit.txt
	@touch $@

.venv/.cluster-test: .venv/.dev requirements-cluster-test.txt
	@$(PIP_INSTALL) --require-hashes -r requirements-cluster-test.txt
	@touch $@

# The servers keep to themselves: they pin a web stack of their own.
.venv-api/.done: requirements-api-test.txt
	@$(PYTHON) -m venv .venv-api
	@.venv-api/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-api-test.txt
	@touch $@
