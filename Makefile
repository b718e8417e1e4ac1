# make run    set up what is missing, serve the main job; Ctrl-C stops it      ARGS="gateway.port=8001"  CONFIG=configs/local.yaml
# make test   set up what is missing, run the whole test suite                 ARGS="tests/configs -k port"
# make bench  set up what is missing, measure beside bare vLLM and ray.serve.llm (about an hour)   ARGS="--quick --stacks vllm,lorikeet"
# make bench-placement   measure the placement of adapters on a cluster of several nodes, beside Serve's multiplexing   ARGS="--quick --parts zipf"
# make lint   formatting, types, import directions                             make clean   forget the set-up

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: run test bench bench-placement lint venv dev bench-dev clean

PYTHON ?= python3.11
# PyTorch's own index of CPU wheels; used for the torch line alone, because an index that does not answer costs every line seconds of retries.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
LOCK ?= requirements/$(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu).txt
DEV_LOCK := requirements/dev.txt
BENCH_LOCK := requirements/bench.txt
ARGS ?=
CONFIG ?=

PIP := .venv/bin/python -m pip --disable-pip-version-check install --progress-bar off --no-deps
# uv fetches side by side what pip fetches one after another. It does not read pip's settings: where those are needed, make … INSTALL='$(PIP)'.
UV_VERSION := 0.13.9
# Compiled once here, or every process of every start would compile them again where Python may not write beside them.
INSTALL ?= .venv/bin/uv pip install --python .venv/bin/python --no-deps --compile-bytecode
# What was installed is remembered under the content of the lock, so a second run installs nothing and a changed lock is noticed.
stamp = .venv/installed-$(shell cat $(1) pyproject.toml | sha256sum | cut -c1-16)

run: venv
	@exec .venv/bin/lorikeet up $(if $(CONFIG),--config $(CONFIG)) $(ARGS)

test: dev
	@.venv/bin/python -m pytest $(ARGS)

bench: bench-dev
	@.venv/bin/python -m benchmarks.run $(ARGS)

bench-placement: bench-dev
	@.venv/bin/python -m benchmarks.placement.run $(ARGS)

lint: dev
	@echo "ruff check"; .venv/bin/ruff check --no-cache .
	@echo "ruff format"; .venv/bin/ruff format --no-cache --check .
	@echo "mypy --strict"; .venv/bin/mypy
	@echo "import directions"; .venv/bin/lint-imports --no-cache

# The lock for serving. The dev lock holds the CPU lock whole, so after `make dev` there is nothing left to do.
venv: .venv/bin/python
	@if [ -e $(call stamp,$(LOCK)) ]; then exit 0; fi; $(call install,$(LOCK))

dev: .venv/bin/python
	@if [ -e $(call stamp,$(DEV_LOCK)) ]; then exit 0; fi; $(call install,$(DEV_LOCK)); \
	if [ "$(LOCK)" = requirements/cpu.txt ]; then touch $(call stamp,$(LOCK)); fi

# The bench lock holds the dev lock whole.
bench-dev: .venv/bin/python
	@if [ -e $(call stamp,$(BENCH_LOCK)) ]; then exit 0; fi; $(call install,$(BENCH_LOCK)); touch $(call stamp,$(DEV_LOCK))

# Torch from its own index, the rest from pip's default one, then Lorikeet itself, editable.
define install
	began=$$SECONDS; \
	rest=$$(mktemp); trap 'rm -f "$$rest"' EXIT; \
	torch=$$(grep -E '^torch==[^ ]+\+cpu' $(1) | cut -d' ' -f1 || true); \
	grep -v -E '^torch==[^ ]+\+cpu' $(1) > "$$rest"; \
	if [ -n "$$torch" ]; then echo "Installing $$torch ..."; $(PIP) --quiet --extra-index-url $(TORCH_CPU_INDEX) "$$torch"; echo "  done ($$((SECONDS - began)) s)"; fi; \
	[ -x .venv/bin/uv ] || $(PIP) --quiet uv==$(UV_VERSION); \
	echo "Installing $$(grep -c '^[a-zA-Z0-9].*==' "$$rest") packages of $(1) ..."; $(INSTALL) -r "$$rest" 2>&1 | sed "/^ [+~-] /d"; echo "  done ($$((SECONDS - began)) s)"; \
	echo "Installing Lorikeet ..."; $(PIP) --quiet --no-build-isolation -e .; \
	touch $(call stamp,$(1)); echo "  set up in $$((SECONDS - began)) s"
endef

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null && $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	{ echo "Lorikeet needs Python 3.11, and '$(PYTHON)' is not one: install it, or say where it is: make run PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Making .venv with $$($(PYTHON) --version) ..."; $(PYTHON) -m venv .venv

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
