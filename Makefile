# Distill or Annotate? One target for each table and figure of the paper; `make` prints help.
#
# A run is a folder, runs/WORLD/TASK/NAME, whose name says what it is: small-n100-s0 is the compact
# model on 100 labels, seed 0. `costs.py rules` writes the rules of all runs that are asked for, whole,
# to runs/WORLD/made/rules-*.mk: read there how each is trained and scored. A run's metrics.json,
# written last, is its stamp: a killed make continues, and a second one does only what is missing.

ifneq (4.2,$(firstword $(sort 4.2 $(MAKE_VERSION))))
  $(error error: GNU make 4.2 or newer is needed, this is $(MAKE_VERSION))
endif
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.SECONDARY:
.DEFAULT_GOAL := help
# Whether make only says what it would do (-n). Variables come from the command line, never from the
# environment: none of them spends or redirects because it happened to be exported.
$(if $(findstring e,$(firstword -$(MAKEFLAGS))),$(error error: -e: variables come from the command line\
  alone, never from the environment; leave -e out))
DRY := $(findstring n,$(firstword -$(MAKEFLAGS)))
MAKEFLAGS += --no-builtin-rules --warn-undefined-variables

#: TASK="wlp fever"	tasks of data/tasks.json, all, or one's own with DATA (wlp)
TASK := $(if $(filter all,$(MAKECMDGOALS)),all,wlp)
#: SCALE=middle	mini, middle or paper, or another of data/scales.json (mini)
SCALE := mini
#: RECIPE=released	settings of the paper or of the released code (the scale's own)
RECIPE :=
#: SEEDS="0 1 2"	each trains every run once more (0)
SEEDS := 0
#: DATA=FOLDER	real data, or one's own with its task.json
DATA :=
#: LAUNCH=COMMAND	put before each training: torchrun, accelerate launch, srun, free_gpu.sh
LAUNCH :=
#: PYTHON=python3.12	makes .venv (python3)
PYTHON := python3
#: PREPARE_FLAGS=...	for data/prepare.py, such as --test-rows 500
# Below scale paper a sample of a real test set will do.
PREPARE_FLAGS := $(if $(DATA),$(if $(filter mini,$(SCALE)),--test-rows 500)$(if $(filter \
  middle%,$(SCALE)),--test-rows 1000))
#: TRAIN_FLAGS=...	for every training script, such as --max-steps 60
TRAIN_FLAGS :=
#: SMALL_FLAGS=...	for train_small.py alone
SMALL_FLAGS :=
#: TEACHER_FLAGS=...	for train_teacher.py alone
TEACHER_FLAGS :=
#: DIST_FLAGS=...	for distill.py alone
DIST_FLAGS :=
#: PARTIAL=1	show what is finished, train nothing
PARTIAL :=
#: REDO=1	make again what data, task or recipe have left behind
REDO :=
#: LLM=1	labels by an LLM in table2, table11 and advise too
#: MODEL=gpt-6-luna	the LLM that is asked, for money; without it a simulated one
#: BUDGET=20	most USD of its answers, by task and seed; of advise and explore the budget
#: LLM_ACCURACY=0.7	how often the simulated LLM is right
#: LLM_FLAGS=...	for gpt_annotate.py, such as --base-url URL
# Labels by an LLM (fig6, fig7; table2 with LLM=1). MODEL=gpt-6-luna calls that model, with
# OPENAI_API_KEY at OpenAI or, by OPENAI_BASE_URL, at any other server. BUDGET: the most USD that
# the answers of one task and seed may ever cost; paper: what they cost in the paper. Without MODEL
# a key is never used: a simulated annotator that is right so often (LLM_ACCURACY) answers.
LLM :=
MODEL :=
BUDGET := paper
LLM_ACCURACY := 0.7
LLM_FLAGS :=
#: PILOT=students	how far the pilot of advise goes: students, teacher or distilled (distilled)
PILOT := distilled
#: ADVISE_FLAGS=...	for costs.py advise: prices and the like
ADVISE_FLAGS :=
#: PYTEST_FLAGS=...	for make test
PYTEST_FLAGS :=
#: STRATEGY=dist	the arm of make sweep: small, teacher or dist (small)
STRATEGY := small
#: RATES="1e-3 3e-3"	its learning rates
RATES :=
#: STEPS="300 900"	its numbers of steps
STEPS :=

# --- settings, checked before anything is made -----------------------------------------------

$(if $(wildcard data/scales.json),,$(error error: $(CURDIR) has no data/scales.json: run make in the\
  folder of the Makefile, as by make -C FOLDER))
$(if $(value PYTHONSAFEPATH),$(error error: PYTHONSAFEPATH is set, by which Python finds no module of\
  this project: unset it))
# Spaces around a word say nothing.
$(foreach v,TASK SCALE RECIPE SEEDS DATA PYTHON PARTIAL REDO LLM MODEL BUDGET LLM_ACCURACY STRATEGY RATES \
  STEPS PILOT,$(eval override $(v) := $$(strip $$($(v)))))

# These words become paths and words of a shell, so only plain characters pass, whatever the goal;
# a folder of runs or splits is never named by anything else.
PLAIN := a b c d e f g h i j k l m n o p q r s t u v w x y z A B C D E F G H I J K L M N O P Q R S T \
  U V W X Y Z 0 1 2 3 4 5 6 7 8 9 _ . -
# What is left of a text without the characters of a list and spaces, without plain ones and those of
# a list, and of what is not one number.
left = $(eval rest := $$(1))$(strip $(foreach c,$(2),$(eval rest := $$(subst $(c),,$$(rest))))$(rest))
odd = $(call left,$(1),$(PLAIN) $(2))
no_number = $(call left,$(1),0 1 2 3 4 5 6 7 8 9 .)$(word 2,$(1))$(word 3,$(subst ., ,x$(1)x))$(if \
  $(strip $(subst .,,$(1))),,none)
odd_path = $(call odd,$(1),/ : @ + = ~)$(word 2,$(1))
check = $(if $(strip $(2)),$(error error: $(1)=$($(1)): $(3)))
quote = '$(subst ','\'',$(1))'
$(call check,PYTHON,$(call odd_path,$(PYTHON)),no name of a program)
$(call check,PYTHON,$(if $(shell command -v $(PYTHON)),,none),no such program; Python 3.11 or newer is needed)
# What a mistyped name was meant to be, of the names in $(2).
near = $(shell $(PYTHON) -c 'import difflib, sys; a, *b = sys.argv[1:]; n = [*difflib.get_close_matches(a, b), \
  *difflib.get_close_matches(a.upper(), b)]; print(f"; did you mean {n[0]}?" if n else ";")' $(call quote,$(1)) $(2))
KNOWN := TASK SCALE RECIPE SEEDS DATA LAUNCH PYTHON PREPARE_FLAGS TRAIN_FLAGS SMALL_FLAGS TEACHER_FLAGS \
  DIST_FLAGS PARTIAL REDO LLM MODEL BUDGET LLM_ACCURACY LLM_FLAGS STRATEGY RATES STEPS PILOT ADVISE_FLAGS PYTEST_FLAGS OPENAI_API_KEY \
  OPENAI_BASE_URL RUNS PREPARED ANSWERS VENV PY INSTALLED CORES OMP_NUM_THREADS
GIVEN := $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(v)))),$(v)))
STRANGE := $(firstword $(filter-out $(KNOWN) MAKE% -%,$(GIVEN)))
$(if $(STRANGE),$(error error: $(STRANGE)=: no such variable$(call near,$(STRANGE),$(KNOWN)) `make help` lists them))
SCALES := $(shell $(PYTHON) -c 'import json; print(*json.load(open("data/scales.json")))')
$(call check,SCALE,$(if $(filter 1,$(words $(SCALE))),$(filter-out $(SCALES),$(SCALE)),none),no\
  such scale; choose one of $(SCALES))
$(foreach v,TASK STRATEGY RATES STEPS SEEDS LLM_ACCURACY,$(call check,$(v),$(call odd,$($(v)),),take\
  letters and digits and _ . - alone))
$(foreach v,RECIPE MODEL DATA,$(call check,$(v),$(call odd_path,$($(v))),take letters and digits and\
  / : @ + = ~ _ . - alone; of a path with others make a link))
$(foreach v,RECIPE DATA,$(call check,$(v),$(findstring :,$($(v))),a colon is a word of make; make a\
  link without one))
$(call check,LLM_ACCURACY,$(call no_number,$(LLM_ACCURACY))$(filter-out 0 0.% .% 1 1.0,$(LLM_ACCURACY)),one\
  share from 0 to 1 is needed)
$(call check,BUDGET,$(if $(filter-out xpaper,x$(BUDGET)),$(call no_number,$(BUDGET))$(if $(strip $(subst \
  0,,$(subst .,,$(BUDGET)))),,none)),dollars such as 20 are needed)
$(foreach v,PARTIAL REDO LLM,$(call check,$(v),$(filter-out 1,$($(v))),say $(v)=1 or leave it out))
$(call check,PILOT,$(filter-out students teacher distilled,$(PILOT)),say students or teacher or distilled)
$(call check,DATA,$(if $(DATA),$(if $(notdir $(abspath $(DATA))),$(if $(wildcard $(DATA)/.),,none),none)),no\
  such folder)
OF := $(if $(DATA),-$(lastword $(notdir $(abspath $(DATA)))))
WORLD := $(SCALE)$(if $(RECIPE),-$(RECIPE))$(OF)
RUNS := runs/$(WORLD)
PREPARED := data/prepared/$(SCALE)$(OF)
MADE := $(RUNS)/made

PAPER_TASKS := wlp stanceosaurus fever multipit_id multipit_gen nq
TASKS := $(if $(filter all,$(TASK)),$(PAPER_TASKS),$(TASK))
PRINTED := table1 table5 table6 table7 table8
TRAINED := table2 table3 table4 table9 table10 table11
DRAWN := fig2 fig3 fig4 fig5 fig6 fig7
ADVICE := pilot advise explore
OTHERS := all help settings venv data mini-models bench bench-gpu backtest sweep test lint clean clean-runs
TARGETS := $(PRINTED) $(TRAINED) $(DRAWN) $(ADVICE) $(OTHERS)
# A file may be asked for too, by its path.
$(foreach g,$(filter-out $(TARGETS),$(MAKECMDGOALS)),$(if $(findstring /,$(g)),,$(error error: $(g): no\
  such target$(call near,$(g),$(TARGETS)) `make help` lists them)))
# What it would pass over in silence: the pilot has seeds of its own.
$(if $(filter $(ADVICE),$(MAKECMDGOALS)),$(if $(filter-out $(ADVICE),$(MAKECMDGOALS)),,$(call \
  check,SEEDS,$(filter-out 0,$(SEEDS)),a pilot has its own seeds; leave it out)))
GOALS := $(if $(filter all,$(MAKECMDGOALS)),all,$(filter $(TRAINED) $(DRAWN) data sweep table5 table7,$(MAKECMDGOALS))) \
  $(if $(filter $(ADVICE),$(MAKECMDGOALS)),pilot)

CORES := $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1)
# Small models keep one core busy each, so at mini scale independent runs stand side by side. What
# -j says, make 4.3 tells recipes alone, and not even them of -j1: here the command line has it.
COMMAND := { tr '\0' ' ' < /proc/$$PPID/cmdline || ps -o args= -p $$PPID; } 2> /dev/null
JOBS := $(or $(shell $(COMMAND) | sed -nE 's/.* (-[a-zA-Z]*j|--jobs[= ]) ?([0-9]+).*/\2/p'),$(if $(filter \
  mini,$(SCALE)),$(CORES),1))
ifeq ($(SCALE),mini)
  export OMP_NUM_THREADS ?= 1
  export MAKE_PID := $(shell echo $$PPID)
  ifeq ($(filter -j%,$(MAKEFLAGS)),)
    MAKEFLAGS += -j$(JOBS)
  endif
endif
export TOKENIZERS_PARALLELISM := false
# Set in many containers; each process would then compile all of torch again, for seconds.
unexport PYTHONDONTWRITEBYTECODE
OPENAI_API_KEY ?=
OPENAI_BASE_URL ?=
KEY := $(OPENAI_API_KEY)$(OPENAI_BASE_URL)$(findstring --base-url,$(LLM_FLAGS))

# --- set-up ----------------------------------------------------------------------------------

VENV := .venv
PY := $(VENV)/bin/python
SHA := import hashlib; print(hashlib.sha256(open("requirements.txt", "rb").read()).hexdigest()[:12])
# The pip that Python 3.11 brings takes twice as long, and does where no newer one is to be had.
PIP = $(PY) -m pip install --quiet --disable-pip-version-check --no-compile
INSTALLED := $(VENV)/installed-$(shell $(PYTHON) -c '$(SHA)')

$(INSTALLED):
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit( \
	  f"error: Python {v[0]}.{v[1]} found, 3.11 to 3.13 needed; say for example PYTHON=python3.12")'
	@[ ! -L $(VENV) ] || { echo "error: $(VENV) is a link, and what it leads to may be another's: make" \
	  "venv there, or remove the link" >&2; exit 1; }
	@echo "installing requirements.txt into $(VENV): some minutes, about 1.5 GB" >&2
	@$(PYTHON) -m venv $$($(PY) -c '' 2>/dev/null || echo --clear) $(VENV)
	@$(PIP) --upgrade pip==26.3 2> /dev/null || true
	@$(PIP) -r requirements.txt
	@touch $@

# --- runs ------------------------------------------------------------------------------------

# What the rules of runs take from here. LAUNCH finds torchrun and accelerate in .venv. Scoring is
# one process, so it takes no launcher of several, but a queue (srun, free_gpu.sh) it does: it may
# need the GPU that only a job has. In a simulation no dollar is spent.
launch = $(if $(LAUNCH),PATH="$(abspath $(VENV))/bin:$$PATH" $(LAUNCH))
several = $(filter torchrun accelerate,$(LAUNCH))
queue = $(if $(several),,$(if $(filter srun %free_gpu.sh,$(firstword $(LAUNCH))),$(LAUNCH)))
# Loading torch takes longer than scoring with a mini model, so there one process does both, and
# is a copy of one that make keeps loaded.
in_one = $(if $(filter mini,$(SCALE)$(LAUNCH)),-m data.costs.in_one)
define alone

@exec $(queue) $(PY)
endef
then = $(if $(in_one),--,$(alone))
quiet = $(if $(in_one),,> /dev/null)
# For advice BUDGET is a question, so the few answers to dev rows are bought under one of their own.
spend = $(if $(filter $(ADVICE),$(MAKECMDGOALS)),5,$(BUDGET))
llm = $(if $(MODEL),--model '$(MODEL)' --budget $(call quote,$(spend)),--simulate $(LLM_ACCURACY) --budget 1000000)
ANSWERS := data/answers/$(WORLD)
told = $(PYTHON) -m data.costs.rules $(RULES:.mk=.json)
ASKED :=
LIMITS := $(if $(DATA),--data '$(DATA)')

ifneq ($(strip $(GOALS)),)
  RULES := $(shell $(PYTHON) costs.py rules --for '$(GOALS)' --task='$(TASK)' --scale '$(SCALE)' \
    --seeds='$(SEEDS)' --recipe='$(RECIPE)' --runs $(RUNS) --prepared $(PREPARED) --made $(MADE) $(LIMITS) \
    --prepare-flags=$(call quote,$(PREPARE_FLAGS)) --train-flags=$(call quote,$(TRAIN_FLAGS)) \
    --small-flags=$(call quote,$(SMALL_FLAGS)) --teacher-flags=$(call quote,$(TEACHER_FLAGS)) \
    --dist-flags=$(call quote,$(DIST_FLAGS)) --advise-flags=$(call quote,$(ADVISE_FLAGS)) --model='$(MODEL)' --pilot '$(PILOT)' --accuracy='$(LLM_ACCURACY)' --jobs $(JOBS) \
    $(if $(LLM),--llm) $(if $(KEY),--key) $(if $(PARTIAL),--partial) $(if $(REDO),--redo) $(if $(DRY),--dry))
  ifneq ($(.SHELLSTATUS),0)
    $(error stopped before anything was made)
  endif
  include $(RULES)
endif

$(PREPARED)/%/about.json: | $(INSTALLED)
	@exec $(PY) -m data.prepare --task $* --scale $(SCALE) $(PREPARE_FLAGS) $(LIMITS) --output $(@D) >&2

# --- tables and figures ----------------------------------------------------------------------

show = plots.py $@ --task "$(TASK)" $(LIMITS)
runs = --scale $(SCALE) --seeds "$(SEEDS)" --runs $(RUNS) $(if $(LLM),--llm) $(if $(DATA),--prepared $(PREPARED))

.PHONY: $(TARGETS)

## Results (trained where missing)
all: $(PRINTED) $(ASKED) ## every table and figure of TASK (default here: all six tasks)
table2: ## annotation against distillation at equal dollars (main results)
table3: ## self-distillation against distillation on equal unlabeled data
table4: ## budgets at which annotation catches up with distillation
table9: ## teacher on all labels beside published scores
table10: ## DistilBERT and BERT on labels, and one of them distilled, beside Ann. and Dist.
table11: ## table2 from N=100
fig2: ## score against dollars, Pareto frontier
fig3: ## score against N at equal dollars
fig4: ## compact models of three sizes
fig5: ## teachers of three sizes
fig6: ## labels by an LLM against people's and distillation, at equal dollars
fig7: ## an LLM's own answers against a model on labels
## Prices and settings (seconds)
table1: ## prices of labels
table5: ## sizes of the data sets
table6: ## costs of 5K labels, distilled over 100K rows
table7: ## an example of each task
table8: ## hyperparameters

# Tables and figures are always made anew: that takes seconds, and what is shown is what is there.
$(TRAINED):
	@$(PYTHON) $(show) $(runs) --output $(MADE)

$(DRAWN): | $(INSTALLED)
	@$(PY) $(show) $(runs) --output $(MADE) > /dev/null
	@cat $(MADE)/$@.md; echo $(MADE)/$@.png

table5 table7: | $(patsubst %,$(PREPARED)/%/about.json,$(TASKS))
$(PRINTED):
	@$(PYTHON) $(show) $(if $(filter table5 table6 table7,$@),--prepared $(PREPARED)) --output $(MADE)

## Advice for a task before the money is spent (BUDGET=500 ADVISE_FLAGS="--usd-per-label 0.20")
pilot: ## the few runs that advice needs, scored on dev (PILOT=students|teacher|distilled)
advise: ## annotate or distil: what each budget scores, who wins, how sure (or an LLM: LLM=1)
explore: ## the same as a page with a slider for every price, which opens from the disk

# The budget is in dollars; without one, the budgets of the task's entry.
advice = $(PYTHON) costs.py advise --task '$(1)' --scale $(SCALE) --runs $(RUNS)/$(1) \
  --prepared $(PREPARED) $(LIMITS) $(if $(filter-out paper,$(BUDGET)),--budget $(call quote,$(BUDGET))) \
  --page $(MADE)/$(1)-explorer.html --save $(MADE)/$(1)-advice.json $(ADVISE_FLAGS) $(if \
  $(filter explore,$@),> /dev/null, && $(PY) plots.py advice --advice $(MADE)/$(1)-advice.json >&2)
advise explore: pilot
	@$(foreach t,$(TASKS),$(call advice,$(t));)

# --- the rest --------------------------------------------------------------------------------

## Set-up and data
venv: $(INSTALLED) ## install requirements.txt into .venv (each target does so where needed)
data: $(patsubst %,$(PREPARED)/%/about.json,$(TASKS)) ## prepare the splits of TASK
	@printf '%s\n' $(^D)
mini-models: | $(INSTALLED) ## pre-train the mini models again, in data/world/models/work (hours)
	@$(PY) -m data.world.pretrain

## The bundle itself
help: ## this list
	@echo 'make TARGET [NAME=VALUE ...]   [-j JOBS: runs side by side] [-n: what would be done]'
	@sed -nE 's/^## (.*)/\n\1/p; s/^([a-z0-9-]+):[^#]*## (.*)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16
	@printf '\nVariables (from the command line alone)\n'
	@sed -nE 's/^#: (.*)/  \1/p' $(firstword $(MAKEFILE_LIST)) | expand -t 22
settings: ## the values of all variables
	@echo 'TASK=$(TASK) SCALE=$(SCALE) SEEDS=$(SEEDS) DATA=$(DATA)' LAUNCH=$(call quote,$(LAUNCH))
	@echo 'LLM=$(LLM) MODEL=$(MODEL) LLM_ACCURACY=$(LLM_ACCURACY) answers: $(ANSWERS)'
	@echo 'runs: $(RUNS)  data: $(PREPARED)  make flags: $(MAKEFLAGS)'
bench: | $(INSTALLED) ## time distillation against the released loop and plain fine-tuning
	@$(PY) -m data.bench.distill
bench-gpu: | $(INSTALLED) ## measure T5-XXL and T5-Small on this machine's GPU (10 minutes)
	@$(PY) -m data.bench.gpu --output data/results
sweep: $(patsubst %,$(PREPARED)/%/about.json,$(TASKS)) ## rates and steps of an arm, scored on dev: STRATEGY, RATES, STEPS
	@$(PY) -m data.bench.sweep --task '$(TASK)' --scale $(SCALE) $(LIMITS) --strategy '$(STRATEGY)' \
	  $(if $(RATES),--rates $(RATES)) $(if $(STEPS),--steps $(STEPS)) $(if $(filter-out 0,$(SEEDS)),--seed '$(SEEDS)')
backtest: | $(INSTALLED) ## how often advice is right, on measured tables (4 minutes)
	@$(PY) -m data.bench.backtest
test: | $(INSTALLED) ## all tests (minutes; PYTEST_FLAGS="-k costs" for some)
	@$(PY) -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder $(PYTEST_FLAGS)
lint: | $(INSTALLED) ## formatting and common mistakes
	@$(PY) -m ruff format --check . && $(PY) -m ruff check .
clean: ## remove tables and caches; runs, data, labels and paid answers stay
	@rm -rf -- '$(MADE)' .pytest_cache .hypothesis .ruff_cache __pycache__ */__pycache__
clean-runs: ## remove the runs and the data of SCALE (and DATA), not paid answers
	@rm -rf -- 'runs/$(WORLD)' 'data/prepared/$(SCALE)$(OF)'
