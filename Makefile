# Everything here works on a fresh Debian-like machine as root, and installs what it needs itself.
# `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
# Two for each CPU: tests wait half of their time, for the kernel, which takes 30 ms to delete a link.
JOBS ?= $(shell expr $$(nproc) \* 2)
PYTEST := $(VENV)/bin/pytest -n $(JOBS) --dist loadgroup --durations 20 --durations-min 5

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test test-cluster manifests soak fuzz generate docs lint test-static test-pip test-packages clean

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 19

venv: $(VENV)/.complete ## build .venv, whose bin/mycelium-cni is the executable

PIP := $(VENV)/bin/pip install --disable-pip-version-check --progress-bar off

# Enough to run the program; what tests and linters need takes longer.
$(VENV)/.runs: pyproject.toml scripts/run-packages.txt
	@scripts/apt-ensure scripts/run-packages.txt
	@scripts/step "making $(VENV)" $(PYTHON) -m venv $(VENV)
	@scripts/step "installing mycelium-cni into it" $(PIP) --editable .
	@touch $@

$(VENV)/.complete: $(VENV)/.runs
	@scripts/step "installing test tools and linters into it" $(PIP) --editable '.[dev]'
	@touch $@

demo: $(VENV)/.runs ## two nodes, an overlay between them, pods pinging across it
	$(VENV)/bin/mycelium-cni demo

test: venv test-packages ## run everything
	$(MAKE) --jobs=2 --output-sync=line lint dist
	$(MAKE) test-static
	$(MAKE) test-pip

lint: venv ## format, lint, types, and who may import whom
	$(VENV)/bin/ruff format --check --quiet
	$(VENV)/bin/ruff check --quiet
	$(VENV)/bin/mypy
	for each in unit netns protocol; do $(VENV)/bin/mypy tests/$$each || exit 1; done
	for each in soak fuzz; do MYPYPATH=tests/netns $(VENV)/bin/mypy tests/$$each || exit 1; done
	$(VENV)/bin/lint-imports --config pyproject.toml --no-cache
	shellcheck scripts/apt-ensure scripts/step .ci/run

test-packages: tests/apt-packages.txt
	@scripts/apt-ensure tests/apt-packages.txt

lint test-static test-pip: test-packages

# Nodes get the static file, so every test of what a call does runs against that one.
test-static: export MYCELIUM_CNI_COMMAND = $(CURDIR)/dist/mycelium-cni-linux-amd64
test-static: venv dist ## all tests, those of the executable against the static one
	$(PYTEST) tests

# The pip-installed command runs the same code in another interpreter, which treats the environment and
# the standard streams differently and has other libraries. So: the protocol, chains of plugins, and the
# commands that start themselves or are started by others.
PIP_TESTS := tests/protocol $(addprefix tests/netns/test_,chain.py demo.py install.py status.py without_root.py)

test-pip: venv ## that the pip-installed command answers as the static executable does
	$(PYTEST) $(PIP_TESTS)

test-cluster: export MYCELIUM_CNI_COMMAND = $(CURDIR)/dist/mycelium-cni-linux-amd64
test-cluster: venv test-packages image ## a real Kubernetes of three nodes; the first time it is built, 45 min
	$(VENV)/bin/pytest tests/cluster

manifests: venv ## write deploy/*.yaml as the chart makes them
	PYTHONPATH=tests $(VENV)/bin/python -m tests.cluster.rendering

soak: venv ## attach pods by the thousand, every fifth call killed (ARGS="--count 10000 --mode bridge")
	PYTHONPATH=tests:tests/netns $(VENV)/bin/python -m soak $(ARGS)

fuzz: venv ## a million damaged inputs, guided by what they reach (ARGS="--runs 1000000 netlink")
	@scripts/step "installing the fuzzer" $(PIP) --editable '.[fuzz]'
	PYTHONPATH=tests $(VENV)/bin/python -m fuzz $(ARGS)

# In a virtual environment of its own: nobody needs MkDocs to work on the code.
generate: venv ## write the parts of docs/ that come from the program
	PYTHONPATH=src $(VENV)/bin/python docs/generate.py

docs: ## the documentation site, in build/site; a broken link is an error
	@test -x build/docs-venv/bin/pip || $(PYTHON) -m venv build/docs-venv
	@scripts/step "installing MkDocs" build/docs-venv/bin/pip install --progress-bar off -r docs/requirements.txt
	@PYTHONPATH=src NO_MKDOCS_2_WARNING=1 scripts/step "building the site" build/docs-venv/bin/mkdocs build --strict
	@echo "build/site/index.html"

clean: ## remove what was built; the test tools' cache (.tools) stays
	rm -rf $(VENV) build dist

-include launcher/launcher.mk
include bench/bench.mk
