# Distill or Annotate? One target for each table and figure of the paper; `make` prints help.
#
# A run is a folder, runs/WORLD/TASK/NAME, whose name says what it is: small-n100-s0 is the compact
# model on 100 labels, seed 0 (costs.py lists the runs of each table). Each stage leaves a stamp
# that is written last: training.json (a training script), metrics.json (evaluate.py). So a killed
# make continues, and a second one does only what is missing.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.SECONDARY:
.SECONDEXPANSION:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --warn-undefined-variables

TASK ?= wlp
SCALE ?= mini
SEEDS ?= 0
DATA ?=
LAUNCH ?=
PYTHON ?= python3
# Small models are slow on long real sentences: at mini scale a sample of a real test set will do.
PREPARE_FLAGS ?= $(if $(DATA),$(if $(filter mini,$(SCALE)),--test-rows 500))
TRAIN_FLAGS ?=
PYTEST_FLAGS ?=

# --- settings, checked before anything is made -----------------------------------------------

WORLD := $(SCALE)$(if $(DATA),-$(notdir $(abspath $(DATA))))
RUNS := runs/$(WORLD)
PREPARED := data/prepared/$(WORLD)

PRINTED := table1 table5 table6 table8
TRAINED := table2
ASKED := $(filter $(TRAINED),$(MAKECMDGOALS))

ifneq ($(DATA),)
  ifeq ($(wildcard $(DATA)/.),)
    $(error error: DATA=$(DATA): no such folder)
  endif
endif

# How many rows a folder of real data has limits what can be run, so it is split first (seconds).
LIMITS := $(if $(DATA),--prepared $(PREPARED))
define split
  SAID := $$(shell $(PYTHON) data/prepare.py --task '$(1)' --scale '$(SCALE)' --data '$(DATA)' \
    $(PREPARE_FLAGS) --output $(PREPARED)/$(1) 2>&1 > /dev/null)
  ifneq ($$(.SHELLSTATUS),0)
    $$(error $$(SAID))
  endif
endef
$(foreach t,$(if $(DATA),$(if $(ASKED),$(TASK))),$(if $(wildcard $(PREPARED)/$(t)/about.json),,\
  $(eval $(call split,$(t)))))

# The runs behind the tables asked for, as TASK/RUN; costs.py refuses a bad TASK, SCALE or SEEDS.
define add_runs
  FOUND := $$(shell $(PYTHON) costs.py grid --for $(1) --task '$(2)' --scale '$(SCALE)' \
    --seeds '$(SEEDS)' $(LIMITS) 2>&1)
  ifneq ($$(.SHELLSTATUS),0)
    $$(error $$(FOUND))
  endif
  LIST_$(1) += $$(addprefix $(2)/,$$(FOUND))
endef
$(foreach a,$(ASKED),$(eval LIST_$(a) :=)$(foreach t,$(TASK),$(eval $(call add_runs,$(a),$(t)))))
LIST := $(sort $(foreach a,$(ASKED),$(LIST_$(a))))
metrics = $(patsubst %,$(RUNS)/%/metrics.json,$(LIST_$(1)))

CORES := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1)
# Small models keep one core busy each, so at mini scale independent runs stand side by side.
ifeq ($(SCALE),mini)
  export OMP_NUM_THREADS ?= 1
  ifeq ($(filter -j%,$(MAKEFLAGS)),)
    MAKEFLAGS += -j$(CORES)
  endif
endif
export TOKENIZERS_PARALLELISM := false

# --- set-up ----------------------------------------------------------------------------------

VENV := .venv
PY := $(VENV)/bin/python
SHA := import hashlib; print(hashlib.sha256(open("requirements.txt", "rb").read()).hexdigest()[:12])
INSTALLED := $(VENV)/installed-$(shell $(PYTHON) -c '$(SHA)')

$(INSTALLED):
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit( \
	  f"error: Python {v[0]}.{v[1]} found, 3.11 to 3.13 needed; say for example PYTHON=python3.12")'
	@echo "installing requirements.txt into $(VENV): some minutes, about 1.5 GB" >&2
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.PHONY: venv
venv: $(INSTALLED) ## install requirements.txt into .venv (each target does so where needed)

# --- runs ------------------------------------------------------------------------------------

# In the rules for RUNS/%/..., % is TASK/RUN, for example wlp/dist-n100-u1900-s0.
task = $(patsubst %/,%,$(dir $*))
run = $(notdir $*)
strategy = $(firstword $(subst -, ,$(run)))
flags = $(shell $(PYTHON) costs.py flags --task $(task) --scale $(SCALE) --run $(run) \
  $(if $(DATA),--real-text)) $(TRAIN_FLAGS)
# The run whose model labels the rows, and how many rows: as many as any of the runs asked for
# needs, so that one pass of the teacher serves them all.
needs = $(shell $(PYTHON) costs.py needs $(run) --among $(notdir $(filter $(task)/%,$(LIST))))
teacher = $(RUNS)/$(task)/$(word 1,$(needs))

script_small := train_small.py
script_llm := train_small.py
script_teacher := train_teacher.py
script_dist := distill.py
script_self := distill.py
inputs_small = --train $(PREPARED)/$(task)/train.jsonl
inputs_teacher = $(inputs_small)
inputs_dist = --unlabeled $(PREPARED)/$(task)/unlabeled.jsonl --teacher $(teacher)/labels
inputs_self = $(inputs_dist)
after_small :=
after_teacher :=
after_dist = $(teacher)/$(word 2,$(needs)).labels
after_self = $(after_dist)

$(PREPARED)/%/about.json: | $(INSTALLED)
	@$(PY) data/prepare.py --task $* --scale $(SCALE) $(if $(DATA),--data $(DATA)) \
	  $(PREPARE_FLAGS) --output $(@D) >&2

# Order-only prerequisites: a changed comment in a script must not train for hours again.
$(RUNS)/%/training.json: | $(INSTALLED) $(PREPARED)/$$(task)/about.json $$(after_$$(strategy)) \
    $$(script_$$(strategy))
	@$(LAUNCH) $(PY) $(script_$(strategy)) --task $(task) --strategy $(strategy) $(flags) \
	  $(inputs_$(strategy)) --output $(@D)

# The teacher pass, once for all runs that learn from it: here % is TASK/TEACHER/ROWS.
$(RUNS)/%.labels: | $(RUNS)/$$(dir $$*)training.json distill.py
	@$(LAUNCH) $(PY) distill.py --labels-only --teacher $(@D)/model --labels $(@D)/labels \
	  $(shell $(PYTHON) costs.py flags --task $(firstword $(subst /, ,$*)) --scale $(SCALE) \
	    --strategy dist $(if $(DATA),--real-text)) --num-unlabeled $(notdir $*) \
	  --seed $(lastword $(subst -s, ,$(notdir $(@D)))) \
	  --unlabeled $(PREPARED)/$(firstword $(subst /, ,$*))/unlabeled.jsonl
	@touch $@

$(RUNS)/%/metrics.json: | $(RUNS)/%/training.json evaluate.py
	@$(PY) evaluate.py --task $(task) --model $(@D)/model --output $(@D) \
	  --data $(PREPARED)/$(task)/test.jsonl > /dev/null
	@$(if $(ASKED),echo "$$(cat $(LISTS) | xargs ls 2> /dev/null | sort -u | wc -l) of \
	  $(words $(LIST)) runs done" >&2)

.PHONY: data
data: $(patsubst %,$(PREPARED)/%/about.json,$(TASK)) ## prepare the splits of TASK

# --- tables ----------------------------------------------------------------------------------

# The list of a table's runs lies in a file that changes only when the list does, so that another
# SEEDS or TASK never shows a stale table.
OUTPUT := $(RUNS)/tables
LISTS := $(patsubst %,$(OUTPUT)/%.list,$(ASKED))
$(foreach a,$(ASKED),$(shell mkdir -p $(OUTPUT); printf '%s\n' $(call metrics,$(a)) > $(OUTPUT)/.new; \
  cmp -s $(OUTPUT)/.new $(OUTPUT)/$(a).list && rm $(OUTPUT)/.new || mv $(OUTPUT)/.new $(OUTPUT)/$(a).list))

.PHONY: $(TRAINED) $(PRINTED)
table2: ## annotation against distillation at equal dollars (main results)
$(ASKED): %: $(OUTPUT)/%.md
	@cat $< && echo && cat $(OUTPUT)/$@-cells.md

$(patsubst %,$(OUTPUT)/%.md,$(ASKED)): $(OUTPUT)/%.md: $$(call metrics,$$*) $(OUTPUT)/%.list \
    plots.py costs.py data/paper_scores.csv
	@$(PYTHON) plots.py $* --task "$(TASK)" --scale $(SCALE) --seeds "$(SEEDS)" --runs $(RUNS) \
	  $(if $(DATA),--data $(DATA) $(LIMITS)) --output $(OUTPUT) > /dev/null

table1: ## prices of labels
table5: ## sizes of the data sets
table6: ## costs of 5K labels, distilled over 100K rows
table8: ## hyperparameters
$(PRINTED):
	@$(PYTHON) plots.py $@ --output $(OUTPUT)

# --- the rest --------------------------------------------------------------------------------

.PHONY: help settings mini-models bench test lint clean clean-runs
help: ## this list
	@echo "make TARGET [TASK=wlp] [SCALE=mini|paper] [SEEDS=\"0 1 2\"] [DATA=FOLDER] [LAUNCH=COMMAND]"
	@sed -nE 's/^([a-z0-9-]+):[^#]*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

settings: ## the values of all variables
	@echo 'TASK=$(TASK) SCALE=$(SCALE) SEEDS=$(SEEDS) DATA=$(DATA) LAUNCH=$(LAUNCH)'
	@echo 'runs: $(RUNS)  data: $(PREPARED)  make flags: $(MAKEFLAGS)'

mini-models: | $(INSTALLED) ## pre-train the mini models again, in data/mini-models/work (hours)
	@$(PY) data/mini_models.py

bench: | $(INSTALLED) ## time distillation against the released loop and plain fine-tuning
	@$(PY) data/bench_distill.py

test: | $(INSTALLED) ## all tests (minutes; PYTEST_FLAGS="-k costs" for some)
	@$(PY) -m pytest -n $(CORES) --dist loadfile $(PYTEST_FLAGS)

lint: | $(INSTALLED) ## formatting and common mistakes
	@$(PY) -m ruff format --check . && $(PY) -m ruff check .

clean: ## remove tables and caches; runs, data, labels and paid answers stay
	@rm -rf $(OUTPUT) .pytest_cache .hypothesis .ruff_cache __pycache__ */__pycache__

clean-runs: ## remove the runs and the data of SCALE (and DATA), not paid answers
	@rm -rf $(RUNS) $(PREPARED)
