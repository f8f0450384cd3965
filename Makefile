# `make` alone lists the commands. Each does its own set-up; Python 3.11+ and make are enough.
PYTHON ?= python3
PORT ?= 8080
LISTEN ?= 127.0.0.1
HOSTS ?= 8
export PYTHON

SERVER = cluster-dash-server/.venv/installed
MOLE = cluster-dash-mole/.venv/installed
ROOT = .venv/installed
BIN = .venv/bin

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(SERVER) $(MOLE) ## server and a mole of this machine: http://localhost:8080 (PORT=9000 LISTEN=0.0.0.0)
	@cluster-dash-server/.venv/bin/python dev/run.py --port $(PORT) --host $(LISTEN)

demo: $(SERVER) $(MOLE) ## a simulated fleet with faults, nothing kept: http://localhost:8080 (PORT=9000 HOSTS=8)
	@cluster-dash-server/.venv/bin/python dev/demo.py --port $(PORT) --host $(LISTEN) --hosts $(HOSTS)

dev: $(SERVER) ## a server that starts anew when its source changes: http://localhost:8080 (PORT=9000)
	@cd cluster-dash-server && FLASK_APP=cluster_dash_server .venv/bin/flask run --debug --no-debugger --host $(LISTEN) --port $(PORT)

test: setup ## everything CI runs, with real parts: NVML stand-in, processes, Chromium
	dev/parts
	$(MAKE) --no-print-directory check
	dev/tests -n 5 --dist loadfile -m "not soak and not clocked" tests
	dev/tests -n 2 --dist loadfile -m "clocked and not soak" $$(grep -rlw clocked --include='test_*.py' cluster-dash-*/tests tests)

check: setup ## the fast part of `make test`: format, lint, types, import rules, unit tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(MAKE) --no-print-directory --jobs=2 types units

types: setup
	$(BIN)/mypy cluster-dash-server/cluster_dash_server cluster-dash-mole/cluster_dash_mole tests bench dev
	$(BIN)/mypy cluster-dash-server/tests
	$(BIN)/mypy cluster-dash-mole/tests
	$(BIN)/lint-imports

# a process more than there are cores, for tests that wait
units: setup
	dev/tests -n $$(( $$(nproc) + 1 )) --dist loadfile -m "not soak and not clocked" cluster-dash-server/tests cluster-dash-mole/tests

soak: setup ## the long runs; `make test` has their short form
	$(BIN)/pytest -m soak --timeout 36000 tests

bench: setup ## the benchmarks, each beside its reference
	$(BIN)/python bench/run.py

dist: setup ## one archive that installs server or mole without git and without internet
	$(BIN)/python dev/dist.py

audit: setup ## known vulnerabilities of what the lock files name; needs the internet, and says where it has none
	$(BIN)/python dev/audit.py

format: setup ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

screenshots: setup ## docs/screenshots from the demo; look at the diff
	$(BIN)/python dev/screenshots.py

goldens: setup ## rewrite the recorded machines' expected snapshots; review the diff
	$(BIN)/pytest cluster-dash-mole/tests --rewrite-goldens

lock: ## pin dependencies again (dev/lock --upgrade: to the newest releases)
	dev/lock

setup: $(SERVER) $(MOLE) $(ROOT)

$(SERVER): cluster-dash-server/requirements.lock cluster-dash-server/pyproject.toml
	@dev/venv cluster-dash-server

$(MOLE): cluster-dash-mole/requirements.lock cluster-dash-mole/pyproject.toml
	@dev/venv cluster-dash-mole

$(ROOT): requirements.lock pyproject.toml cluster-dash-server/pyproject.toml cluster-dash-mole/pyproject.toml
	@dev/venv .

.PHONY: help run demo dev test check types units soak bench dist audit format screenshots goldens lock setup
