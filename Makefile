# Distill or Annotate? One target for each table and figure of the paper; `make` prints help.
#
# A run is a folder, runs/WORLD/TASK/NAME, whose name says what it is: small-n100-s0 is the compact
# model on 100 labels, seed 0 (costs.py lists the runs of each table). One recipe trains a run and
# scores it; its metrics.json, written last, is the stamp. So a killed make continues (the training
# scripts from their checkpoints), and a second one does only what is missing.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.SECONDARY:
.SECONDEXPANSION:
.DEFAULT_GOAL := help
# Whether make only says what it would do (-n).
DRY := $(findstring n,$(firstword -$(MAKEFLAGS)))
MAKEFLAGS += --no-builtin-rules --warn-undefined-variables

TASK ?= $(if $(filter all,$(MAKECMDGOALS)),all,wlp)
SCALE ?= mini
SEEDS ?= 0
DATA ?=
LAUNCH ?=
PYTHON ?= python3
# Below scale paper a sample of a real test set will do.
PREPARE_FLAGS ?= $(if $(DATA),$(if $(filter mini,$(SCALE)),--test-rows 500)$(if $(filter \
  middle%,$(SCALE)),--test-rows 1000))
TRAIN_FLAGS ?=
# PARTIAL=1 shows what is finished and trains nothing.
PARTIAL ?=
# Labels by an LLM (fig6, fig7; table2 with LLM=1). MODEL=gpt-4o-mini calls that model, with
# OPENAI_API_KEY at OpenAI or, by OPENAI_BASE_URL, at any other server. BUDGET: the most USD that
# the answers of one task and seed may ever cost; paper: what they cost in the paper. Without MODEL
# a key is never used: a local server plays an annotator that is right so often (LLM_ACCURACY).
LLM ?=
MODEL ?=
BUDGET ?= paper
LLM_ACCURACY ?= 0.7
LLM_FLAGS ?=
PYTEST_FLAGS ?=

# --- settings, checked before anything is made -----------------------------------------------

# These words become paths and words of a shell, so only plain characters pass, whatever the goal;
# a folder of runs or splits is never named by anything else.
PLAIN := a b c d e f g h i j k l m n o p q r s t u v w x y z A B C D E F G H I J K L M N O P Q R S T \
  U V W X Y Z 0 1 2 3 4 5 6 7 8 9 _ . -
# $(call odd,TEXT): what is left of TEXT without its plain characters and spaces.
odd = $(eval left := $$(1))$(strip $(foreach c,$(PLAIN) $(2),$(eval left := $$(subst $(c),,$$(left))))$(left))
odd_path = $(call odd,$(1),/ : @ + = ~)$(word 2,$(1))
check = $(if $(strip $(2)),$(error error: $(1)=$($(1)): $(3)))
SCALES := $(shell $(PYTHON) -c 'import json; print(*json.load(open("data/scales.json")))')
$(call check,SCALE,$(if $(filter 1,$(words $(SCALE))),$(filter-out $(SCALES),$(SCALE)),none),no\
  such scale; choose one of $(SCALES))
$(call check,TASK,$(call odd,$(TASK)),the name of a task has letters and digits and _ . - alone)
$(call check,SEEDS,$(call odd,$(SEEDS)),whole numbers are needed)
$(call check,MODEL,$(call odd_path,$(MODEL)),no name of a model)
$(call check,DATA,$(call odd_path,$(DATA)),a path with\
  spaces or quotes or the like cannot be used here; make a link to it)
$(call check,DATA,$(if $(DATA),$(if $(notdir $(abspath $(DATA))),,none)),a folder with a name is needed)
WORLD := $(SCALE)$(if $(DATA),-$(notdir $(abspath $(DATA))))
RUNS := runs/$(WORLD)
PREPARED := data/prepared/$(WORLD)

PAPER_TASKS := wlp stanceosaurus fever multipit_id multipit_gen nq
TASKS := $(if $(filter all,$(TASK)),$(PAPER_TASKS),$(TASK))
# Tasks of one's own; the tables of prices and settings show the paper's six if there is none.
OWN := $(filter-out $(PAPER_TASKS),$(TASKS))

PRINTED := table1 table5 table6 table7 table8
TRAINED := table2 table3 table4 table9 table10 table11
DRAWN := fig2 fig3 fig4 fig5 fig6 fig7
# The tables and figures asked for, or all that have one of the tasks.
GOALS := $(if $(filter all,$(MAKECMDGOALS)),all,$(filter $(TRAINED) $(DRAWN),$(MAKECMDGOALS)))

ifneq ($(DATA),)
  ifeq ($(wildcard $(DATA)/.),)
    $(error error: DATA=$(DATA): no such folder)
  endif
endif

# How many rows a folder of real data has limits what can be run, so it is split first (seconds).
LIMITS := $(if $(DATA),--prepared $(PREPARED))
define split
  SAID := $$(shell $(PYTHON) -m data.prepare --task '$(1)' --scale '$(SCALE)' --data '$(DATA)' \
    $(PREPARE_FLAGS) --output $(PREPARED)/$(1) 2>&1 > /dev/null)
  ifneq ($$(.SHELLSTATUS),0)
    $$(error $$(SAID))
  endif
endef
$(foreach t,$(if $(DATA),$(if $(GOALS),$(TASKS))),$(if $(wildcard $(PREPARED)/$(t)/about.json),,\
  $(eval $(call split,$(t)))))

# costs.py refuses a bad TASK, SCALE or SEEDS and defines: ASKED, the tables and figures to make;
# WORK_table2, the files of its runs; for a run named as TASK/RUN its FLAGS_TASK/RUN and, if it
# learns from labels of another model, the file LABELS_TASK/RUN; EVALUATE_TASK, flags to score.
MADE := $(RUNS)/made
ifneq ($(GOALS),)
  SAID := $(shell mkdir -p $(MADE) && $(PYTHON) costs.py rules --for '$(GOALS)' --task '$(TASK)' \
    --scale '$(SCALE)' --seeds '$(SEEDS)' $(LIMITS) $(if $(DATA),--data '$(DATA)' --real-text) $(if $(LLM),--llm) \
    2>&1 > $(MADE)/rules.mk)
  ifneq ($(.SHELLSTATUS),0)
    $(error $(SAID))
  endif
  include $(MADE)/rules.mk
  # At scale paper an LLM costs money, so its figures are made where MODEL says which.
  ifeq ($(GOALS)$(SCALE)$(MODEL),allpaper)
    $(shell echo "note: without MODEL=... fig6 and fig7 are left out" >&2)
    ASKED := $(filter-out fig6 fig7,$(ASKED))
  endif
  ASKED := $(filter $(TRAINED) $(DRAWN),$(ASKED))
else
  ASKED :=
endif

CORES := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1)
# Small models keep one core busy each, so at mini scale independent runs stand side by side.
ifeq ($(SCALE),mini)
  export OMP_NUM_THREADS ?= 1
  ifeq ($(filter -j%,$(MAKEFLAGS)),)
    MAKEFLAGS += -j$(CORES)
  endif
endif
export TOKENIZERS_PARALLELISM := false
OPENAI_API_KEY ?=
OPENAI_BASE_URL ?=

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
task = $(firstword $(subst /, ,$*))
# A task of one's own is told by a file, NAME=FILE.json.
entry = $(ENTRY_$(task))
strategy = $(firstword $(subst -, ,$(notdir $*)))
flags = $(FLAGS_$*) $(TRAIN_FLAGS)

script_small := train_small.py
script_teacher := train_teacher.py
script_bert := train_small.py
script_distilbert := train_small.py
script_dist := distill.py
script_self := distill.py
script_llm := train_small.py
script_prompted := gpt_annotate.py
inputs_small = --train $(PREPARED)/$(task)/train.jsonl
inputs_teacher = $(inputs_small)
inputs_bert = $(inputs_small)
inputs_distilbert = $(inputs_small)
inputs_dist = --unlabeled $(PREPARED)/$(task)/unlabeled.jsonl \
  --teacher $(RUNS)/$(patsubst %/,%,$(dir $(LABELS_$*)))/labels
inputs_self = $(inputs_dist)
inputs_llm = --train $(@D)/$(ANNOTATOR)/labels.jsonl
after_small :=
after_teacher :=
after_bert :=
after_distilbert :=
after_llm = $(RUNS)/$*/$(ANNOTATOR)/annotation.json
after_dist = $(RUNS)/$(LABELS_$*)
after_self = $(after_dist)

# LAUNCH finds torchrun and accelerate in .venv. Scoring is one process, so it takes no launcher of
# several, but a queue (srun alone) it does: it may need the GPU that only a job has.
launch = $(if $(LAUNCH),PATH="$(abspath $(VENV))/bin:$$PATH" $(LAUNCH))
several = $(filter torchrun accelerate,$(LAUNCH))
queue = $(if $(several),,$(if $(filter srun,$(firstword $(LAUNCH))),$(LAUNCH)))

$(PREPARED)/%/about.json: | $(INSTALLED)
	@$(PY) -m data.prepare --task $* --scale $(SCALE) $(if $(DATA),--data $(DATA)) \
	  $(PREPARE_FLAGS) --output $(@D) >&2

# Order-only prerequisites: a changed comment in a script must not train for hours again. One
# recipe for both steps, as make would else train all runs before it scores the first.
$(RUNS)/%/metrics.json: | $(INSTALLED) $(PREPARED)/$$(task)/about.json $$(after_$$(strategy)) \
    $$(script_$$(strategy)) evaluate.py
	@$(launch) $(PY) $(script_$(strategy)) --task $(task) --strategy $(strategy) $(flags) \
	  $(inputs_$(strategy)) --output $(@D)
	@$(queue) $(PY) evaluate.py --task $(entry) --model $(@D)/model --output $(@D) \
	  --data $(PREPARED)/$(task)/test.jsonl $(EVALUATE_$(task)) > /dev/null
	@echo "$$(xargs ls < $(MADE)/.runs 2> /dev/null | wc -l) of $(words $(LIST)) runs done" >&2

# The teacher pass, once for all runs that learn from it: here % is TASK/TEACHER/ROWS.
$(RUNS)/%.labels: | $(RUNS)/$$(dir $$*)metrics.json distill.py
	@$(launch) $(PY) distill.py --labels-only --teacher $(@D)/model --labels $(@D)/labels \
	  $(FLAGS_$*.labels) --unlabeled $(PREPARED)/$(task)/unlabeled.jsonl
	@touch $@

# --- labels by an LLM ------------------------------------------------------------------------

# What was paid for lies outside RUNS, is no target and is never removed. A folder of answers is of
# one annotator and one seed, as its prompts have examples from that seed's labeled rows.
ANNOTATOR := $(if $(MODEL),$(subst :,_,$(subst /,_,$(MODEL))),simulated-$(LLM_ACCURACY))
ANSWERS := data/answers/$(WORLD)
# $(1): the rows that are asked; $(2): the file with their right answers, for the simulation alone,
# in which no dollar is spent.
annotate = $(PY) gpt_annotate.py --task $(entry) --labeled $(PREPARED)/$(task)/train.jsonl \
  --unlabeled $(PREPARED)/$(task)/$(1).jsonl --complete \
  $(if $(MODEL),--model '$(MODEL)' --budget '$(BUDGET)',--simulate $(LLM_ACCURACY) \
    --gold $(PREPARED)/$(task)/$(2).jsonl --budget 1000000) $(LLM_FLAGS)
seed = $(lastword $(subst -s, ,$(1)))

# All answers that the runs of a task and seed need: here % is TASK/answers/ANNOTATOR-sSEED/COUNT.
$(RUNS)/%.answers: | $(INSTALLED) $(PREPARED)/$$(task)/about.json gpt_annotate.py
	@$(if $(MODEL),,test -e $(PREPARED)/$(task)/unlabeled_gold.jsonl || { echo "error: a simulated \
	  annotator needs $(PREPARED)/$(task)/unlabeled_gold.jsonl, the right answers; prepare.py writes \
	  it where they are known (remove $(PREPARED)/$(task) if it is of an older version); for other \
	  rows say MODEL=gpt-4o-mini" >&2; exit 1; })
	@$(call annotate,unlabeled,unlabeled_gold) --num $(notdir $*) --seed $(call seed,$(notdir $(@D))) \
	  --output $(ANSWERS)/$(task)/$(notdir $(@D)) >&2
	@mkdir -p $(@D) && touch $@

# The labels of one run: so many of people, so many of those answers.
$(RUNS)/%/$(ANNOTATOR)/annotation.json: \
    | $(RUNS)/$$(task)/answers/$(ANNOTATOR)-$$(ANSWERS_$$*) gpt_annotate.py
	@$(call annotate,unlabeled,unlabeled_gold) --replay $(ANNOTATE_$*) --output $(@D) \
	  --store $(ANSWERS)/$(task)/$(ANNOTATOR)-s$(call seed,$*)/answers.jsonl > /dev/null

# An LLM's own answers to test rows, scored as a model's.
PROMPTED := $(foreach a,$(ASKED),$(patsubst %,$(RUNS)/%,$(foreach w,$(WORK_$(a)),$(if \
  $(findstring /prompted-,$(w)),$(w)))))
$(sort $(PROMPTED)): $(RUNS)/%/metrics.json: \
    | $(INSTALLED) $(PREPARED)/$$(task)/about.json gpt_annotate.py evaluate.py
	@$(call annotate,test,test) $(ANNOTATE_$*) --predictions --output $(@D)/$(ANNOTATOR) \
	  --store $(ANSWERS)/$(task)/$(ANNOTATOR)-s$(call seed,$*)-test/answers.jsonl >&2
	@$(PY) evaluate.py --task $(entry) --predictions $(@D)/$(ANNOTATOR)/predictions.jsonl \
	  --output $(@D) $(EVALUATE_$(task)) > /dev/null

.PHONY: data
data: $(patsubst %,$(PREPARED)/%/about.json,$(TASKS)) ## prepare the splits of TASK

# --- tables and figures ----------------------------------------------------------------------

# Runs whose strategy has no script above can't be made; they show as missing.
known := $(patsubst script_%,%,$(filter script_%,$(.VARIABLES)))
keep_known = $(foreach w,$(1),$(if $(filter $(known),$(firstword $(subst -, ,$(word 2,$(subst /, ,$(w)))))),$(w)))
work = $(addprefix $(RUNS)/,$(call keep_known,$(WORK_$(1))))
ALL_WORK := $(foreach a,$(ASKED),$(call work,$(a)))
LIST := $(sort $(filter %/metrics.json,$(ALL_WORK)))
UNKNOWN := $(filter-out $(LIST),$(sort $(patsubst %,$(RUNS)/%,$(filter %/metrics.json,\
  $(foreach a,$(ASKED),$(WORK_$(a)))))))
$(if $(UNKNOWN),$(shell echo "note: left out, as there is no way yet to make them:\
  $(patsubst $(RUNS)/%/metrics.json,%,$(UNKNOWN))" >&2))
needed = $(if $(PARTIAL),$(wildcard $(filter %/metrics.json,$(work))),$(work))

# Before anything is made: no two annotators in one run folder, and no paid run without a key.
BY_LLM := $(patsubst %/metrics.json,%,$(foreach w,$(LIST),$(if $(findstring /llm-,$(w))$(findstring \
  /prompted-,$(w)),$(w))))
by_other = $(filter-out %/$(ANNOTATOR)/,$(dir $(wildcard $(addsuffix /*/annotation.json,$(BY_LLM)))))
UNLABELED := $(strip $(foreach r,$(BY_LLM),$(if $(wildcard $(r)/$(ANNOTATOR)/annotation.json),,$(r))))
ifneq ($(by_other),)
  $(error error: $(patsubst %/,%,$(firstword $(by_other))): labels of another annotator than\
    $(ANNOTATOR); say MODEL=... or LLM_ACCURACY=... as then, or move $(patsubst \
    %/,%,$(dir $(patsubst %/,%,$(firstword $(by_other))))) away)
endif
ifneq ($(if $(PARTIAL),,$(UNLABELED)),)
  ifeq ($(SCALE)$(MODEL),paper)
    $(error error: $(firstword $(UNLABELED)) needs labels by an LLM: say MODEL=gpt-4o-mini (any of\
      data/prices.csv) and the most that a task and seed may cost, BUDGET=20)
  endif
  ifneq ($(MODEL),)
    ifeq ($(OPENAI_API_KEY)$(OPENAI_BASE_URL)$(findstring --base-url,$(LLM_FLAGS)),)
      $(error error: MODEL=$(MODEL): no key and no server; set OPENAI_API_KEY or OPENAI_BASE_URL)
    endif
  endif
endif

# The list of a table's runs lies in a file that changes only when the list does, so that another
# SEEDS or TASK never shows a stale table.
define write_list
  $$(file > $(MADE)/.new,$$(filter %/metrics.json,$$(call needed,$(1))))
  $$(shell cmp -s $(MADE)/.new $(MADE)/$(1).list || cp $(MADE)/.new $(MADE)/$(1).list)
endef
$(foreach a,$(ASKED),$(eval $(call write_list,$(a))))
# All runs of this make, to count; one that trains nothing leaves the file to another at work.
$(if $(ASKED),$(if $(PARTIAL)$(DRY),,$(file > $(MADE)/.runs,$(LIST))))

# What a table is made with, beside runs; all of data/, as making it again takes a second.
SHOWS := plots.py costs.py $(wildcard data/*.py data/costs/*.py data/plots/*.py data/paper/*.csv)
plot = plots.py $(basename $(notdir $@)) --output $(MADE)
runs = --task "$(TASK)" --scale $(SCALE) --seeds "$(SEEDS)" --runs $(RUNS) \
  $(if $(LLM),--llm) $(if $(DATA),--data $(DATA) $(LIMITS))

.PHONY: all $(TRAINED) $(PRINTED) $(DRAWN)
all: $(PRINTED) $(ASKED) ## every table and figure of TASK (default here: all six tasks)

table1: ## prices of labels
table2: ## annotation against distillation at equal dollars (main results)
table3: ## self-distillation against distillation on equal unlabeled data
table4: ## budgets at which annotation catches up with distillation
table5: ## sizes of the data sets
table6: ## costs of 5K labels, distilled over 100K rows
table7: ## an example of each task
table8: ## hyperparameters
table9: ## teacher on all labels beside published scores
table10: ## DistilBERT and BERT against annotation and distillation
table11: ## table2 from N=100
fig2: ## score against dollars, Pareto frontier
fig3: ## score against N at equal dollars
fig4: ## compact models of three sizes
fig5: ## teachers of three sizes
fig6: ## labels by an LLM against people's and distillation, at equal dollars
fig7: ## an LLM's own answers against a model on labels

$(filter table%,$(ASKED)): %: $(MADE)/%.md
	@cat $<; echo; $(if $(word 2,$(TASKS)),echo "cell by cell: $(MADE)/$@-cells.md",cat $(MADE)/$@-cells.md)

$(filter fig%,$(ASKED)): %: $(MADE)/%.png
	@echo $<

$(patsubst %,$(MADE)/%.md,$(filter table%,$(ASKED))): $(MADE)/%.md: $$(call needed,$$*) \
    $(MADE)/%.list $(SHOWS)
	@$(PYTHON) $(plot) $(runs) > /dev/null

$(patsubst %,$(MADE)/%.png,$(filter fig%,$(ASKED))): $(MADE)/%.png: $$(call needed,$$*) \
    $(MADE)/%.list $(SHOWS) | $(INSTALLED)
	@$(PY) $(plot) $(runs) > /dev/null

$(filter-out table7,$(PRINTED)):
	@$(PYTHON) plots.py $@ $(if $(OWN),--task "$(TASK)" $(if $(DATA),--data '$(DATA)') \
	  $(if $(filter table5,$@),--prepared $(PREPARED))) --output $(MADE)

table5: | $(if $(OWN),$(patsubst %,$(PREPARED)/%/about.json,$(TASKS)))

table7: $(patsubst %,$(PREPARED)/%/about.json,$(TASKS))
	@$(PYTHON) plots.py $@ --task "$(TASK)" $(if $(DATA),--data '$(DATA)') --prepared $(PREPARED) --output $(MADE)

# --- the rest --------------------------------------------------------------------------------

.PHONY: help settings mini-models bench bench-gpu test lint clean clean-runs
help: ## this list
	@echo "make TARGET [TASK=wlp|\"wlp fever\"|all] [SCALE=mini|paper] [SEEDS=\"0 1 2\"] [DATA=FOLDER] [LAUNCH=COMMAND]"
	@sed -nE 's/^([a-z0-9-]+):[^#]*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

settings: ## the values of all variables
	@echo 'TASK=$(TASK) SCALE=$(SCALE) SEEDS=$(SEEDS) DATA=$(DATA) LAUNCH=$(LAUNCH)'
	@echo 'LLM=$(LLM) MODEL=$(MODEL) BUDGET=$(BUDGET) LLM_ACCURACY=$(LLM_ACCURACY)'
	@echo 'answers: $(ANSWERS)'
	@echo 'runs: $(RUNS)  data: $(PREPARED)  make flags: $(MAKEFLAGS)'

mini-models: | $(INSTALLED) ## pre-train the mini models again, in data/world/models/work (hours)
	@$(PY) -m data.world.pretrain

bench: | $(INSTALLED) ## time distillation against the released loop and plain fine-tuning
	@$(PY) -m data.bench.distill

bench-gpu: | $(INSTALLED) ## measure T5-XXL and T5-Small on this machine's GPU (10 minutes)
	@$(PY) -m data.bench.gpu --output data/bench

test: | $(INSTALLED) ## all tests (minutes; PYTEST_FLAGS="-k costs" for some)
	@$(PY) -m pytest -n $(CORES) --dist loadfile $(PYTEST_FLAGS)

lint: | $(INSTALLED) ## formatting and common mistakes
	@$(PY) -m ruff format --check . && $(PY) -m ruff check .

clean: ## remove tables and caches; runs, data, labels and paid answers stay
	@rm -rf -- '$(MADE)' .pytest_cache .hypothesis .ruff_cache __pycache__ */__pycache__

clean-runs: ## remove the runs and the data of SCALE (and DATA), not paid answers
	@rm -rf -- 'runs/$(WORLD)' 'data/prepared/$(WORLD)'
