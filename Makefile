# Every command of this project; `make` lists them. The first one builds a private environment in .venv.

PYTHON ?= python3
PROFILE ?= default
# Tests side by side, a process a core; tests of one file share what they set up.
AT_ONCE ?= -n auto --maxprocesses 8 --dist loadfile
# Passed to dvc repro, pytest and the benchmarks: make repro ARGS=--force, make test ARGS='-k pgd'.
ARGS ?=

UV_VERSION := 0.13.9
STAMP := .venv/.installed
BIN := $(CURDIR)/.venv/bin
WORKDIR := $(if $(filter default,$(PROFILE)),.,runs/$(PROFILE))
WORKFLOWS := .github/workflows/test.yml .github/workflows/benchmark.yml

# dvc.yaml calls `python`: the one of this environment, activated or not.
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

# The pictures that documents show; all of them are in the report.
SHOWN := worst-case robust_accuracy transfer sensitivity attacks-deformation alike success-against-budget refinement \
	trajectories theory-ordering theory-annuli theory-expansion \
	examples-adef-neural_ode examples-deform_pgd_fold_free-neural_ode

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help venv repro status ui publish snapshot test test-slow test-browser test-all faults bench lint format lock clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' Makefile

venv: $(STAMP) ## Make or refresh the environment in .venv (every other command does it by itself)

# The lock holds every package with its hash. uv is pinned here, because it is what reads the lock; the project itself
# is built by the setuptools of the lock and not by whatever is newest today. Byte code is compiled once, here: where
# PYTHONDONTWRITEBYTECODE is set, as in many containers, each process would compile all of torch again.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	.venv/bin/uv pip sync --quiet --compile-bytecode --python .venv/bin/python requirements.lock
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

repro: $(STAMP) ## Train, attack and report; PROFILE=quick or full does it in runs/<profile>
ifneq ($(WORKDIR),.)
	"$(BIN)/python" -m pipeline.workspace $(PROFILE)
endif
	cd $(WORKDIR) && { $(dvc_ready); } && "$(BIN)/dvc" repro $(ARGS)
	@echo 'The report is $(WORKDIR)/reports/index.html; make ui$(if $(filter .,$(WORKDIR)),, PROFILE=$(PROFILE)) opens the curves.'

# DVC wants to be told where there is no git: in a source tree without it, and in runs/, which git ignores.
dvc_ready = test -f .dvc/config || "$(BIN)/dvc" init --quiet --no-scm; \
	git rev-parse --resolve-git-dir .git >/dev/null 2>&1 || "$(BIN)/dvc" config --quiet --local core.no_scm true

status: $(STAMP) ## What is trained and attacked, what runs, and how long the rest takes
	cd $(WORKDIR) && "$(BIN)/python" -m pipeline status

ui: $(STAMP) ## Serve MLflow's pages on 127.0.0.1 and print the link that opens the curves
	cd $(WORKDIR) && "$(BIN)/python" -m pipeline.stages.ui

publish: $(STAMP) ## Send finished results to MLflow (adds nothing twice)
	cd $(WORKDIR) && "$(BIN)/python" -m pipeline.stages.publish

snapshot: ## Copy the finished report's summary, curves and pictures to docs/results/<profile>, which is committed
	mkdir -p docs/results/$(PROFILE)/figures
	cp $(WORKDIR)/reports/summary.md $(WORKDIR)/reports/curves.csv docs/results/$(PROFILE)/
	rm -f docs/results/$(PROFILE)/figures/*
	cp $(wildcard $(SHOWN:%=$(WORKDIR)/reports/figures/%.png)) docs/results/$(PROFILE)/figures/

test: $(STAMP) ## Tests that need neither minutes nor a browser
	"$(BIN)/python" -m pytest $(AT_ONCE) $(ARGS)

test-slow: $(STAMP) ## End-to-end runs of minutes
	"$(BIN)/python" -m pytest -m slow $(AT_ONCE) $(ARGS)

test-browser: $(STAMP) ## The report in a browser (Debian: apt-get install chromium)
	"$(BIN)/python" -m pytest -m browser $(ARGS)

test-all: test test-slow test-browser ## All of them

faults: $(STAMP) ## Kill, damage and crowd runs; the next one must come to the same (ARGS=4: so many kills)
	"$(BIN)/python" -m tests.faults $(ARGS)

bench: $(STAMP) ## Speed of the attacks against their floor and their peers
	"$(BIN)/python" -m benchmarks $(ARGS)

lint: $(STAMP) ## Style, types and workflows
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"
	"$(BIN)/check-jsonschema" --builtin-schema vendor.github-workflows $(WORKFLOWS)
	"$(BIN)/zizmor" --offline --quiet --no-progress $(WORKFLOWS)

format: $(STAMP) ## Put the code into shape
	"$(BIN)/ruff" check --fix .
	"$(BIN)/ruff" format .

lock: $(STAMP) ## Pin today's newest packages that pyproject.toml allows
	"$(BIN)/uv" pip compile pyproject.toml --all-extras --universal --generate-hashes --no-header \
		--no-emit-index-url --python-version 3.11 --upgrade --quiet --output-file requirements.lock

clean: ## Remove caches and the environment; results and the row store stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
