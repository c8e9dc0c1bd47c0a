# Two commands matter on a fresh machine: `make run` and `make test`. Both need Python 3.11 or newer, nothing else.

.DEFAULT_GOAL := help
.PHONY: help run test check defects bench requirements providers clean
.DELETE_ON_ERROR:

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
PINS := requirements.txt constraints.txt
SUPPORTED := import sys; sys.exit(sys.version_info < (3, 11))
ARGS ?=
# Most tests wait for real processes, so more of them run at once than a small machine has cores. Those that wait
# longest come first, as the folders are in that order, and what is compiled is compiled once for all.
JOBS ?= 3

help:  ## List these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.run  ## Start web, worker and an embedded broker here; PORT=8000, stop with Ctrl-C
	@exec $(PY) -m firstseen.dev

test: $(VENV)/.test  ## Run all tests; ARGS="-k name -x" goes to pytest, JOBS=0 runs them one after another
	@exec env PYTHONDONTWRITEBYTECODE= $(PY) -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.test  ## Lint, check the format, the types and the import contracts
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

defects: $(VENV)/.test  ## Break each promise in a copy; fail if its tests still pass
	@exec $(PY) -m tests.defects.run $(ARGS)

bench: $(VENV)/.bench  ## Measure Firstseen beside others; needs wrk. ARGS="accept --quick" measures less
	@exec $(PY) -m tests.bench $(ARGS)

requirements: $(VENV)/.test  ## Pin the newest versions that pyproject.toml allows
	$(PIP) install uv
	rm -f $(PINS)
	$(VENV)/bin/uv pip compile $(COMPILE) --generate-hashes --output-file requirements.txt
	$(VENV)/bin/uv pip compile $(COMPILE) --all-extras --constraint requirements.txt --output-file constraints.txt

COMPILE := pyproject.toml --universal --python-version 3.11 --upgrade --no-emit-index-url --no-annotate --quiet \
	--custom-compile-command "make requirements"

providers: $(VENV)/.test  ## Write the tables of docs/providers.md from the catalogue
	$(PY) -m firstseen.providers docs/providers.md

clean:  ## Remove .venv, caches and build output; var/ and .env stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.run: $(VENV)/.pinned
	@echo "Installing what make run needs ..."
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/.test: $(VENV)/.pinned
	@echo "Installing what make test needs ..."
	@$(PIP) install --constraint constraints.txt --editable '.[test]'
	@touch $@

$(VENV)/.bench: $(VENV)/.test
	@echo "Installing what make bench needs ..."
	@$(PIP) install --constraint constraints.txt --editable '.[bench]'
	@touch $@

$(VENV)/.pinned: pyproject.toml $(PINS)
	@python=; for found in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
		if $$found -c '$(SUPPORTED)' 2>/dev/null; then python=$$found; break; fi; done; \
	if [ -z "$$python" ]; then \
		echo "Firstseen needs Python 3.11 or newer, and python3 here is $$(python3 --version 2>&1):" \
			"install one, or name it: make run PYTHON=/path/to/python3.14" >&2; exit 1; fi; \
	$$python -m venv $(VENV) || { \
		echo "python3 cannot make virtual environments here; on Debian and Ubuntu: apt-get install python3-venv" >&2; \
		exit 1; }
	@echo "Installing the pinned versions into $(VENV) ..."
	@$(PIP) install --require-hashes --requirement requirements.txt
	@touch $@
