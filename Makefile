# Every target is one command line; `make help` lists them. DATA, TEACHER, RECIPE and SET narrow what it works on:
#   make distill DATA=path/to/folder TEACHER=Qwen/Qwen3-0.6B RECIPE=recipes/ml-100k-full.toml SET="student.dropout=0.2"
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RECIPE ?= recipes/ml-100k.toml
RUNS ?= runs
OPTIONS := --recipe $(RECIPE) --runs $(RUNS) $(if $(DATA),--data "$(DATA)") $(if $(TEACHER),--teacher "$(TEACHER)") \
           $(foreach entry,$(SET),--set '$(entry)') $(if $(OVERWRITE),--overwrite)
RECDISTILL := $(BIN)/recdistill

.PHONY: help setup data teacher distill quantize export-onnx export-trt export-triton verify bench bench-full check-latency drift prove-gate smoke test test-gpu test-network test-peers check format coverage mutation torture peer-gptq peer-sasrec clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## make the environment (every other target does it by itself)

$(VENV)/.installed: pyproject.toml constraints.txt tools/install.sh
	PYTHON=$(PYTHON) tools/install.sh $(VENV)
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	tools/install.sh $(VENV) dev,tensorrt-rtx,openvino,triton,tensorboard
	touch $@

$(VENV)/.tensorrt: $(VENV)/.installed
	tools/install.sh $(VENV) tensorrt-any
	touch $@

data: setup ## import and validate the data
	$(RECDISTILL) data $(OPTIONS)

teacher: setup ## fine-tune the LLM, train the controls, audit the teacher
	$(RECDISTILL) teacher $(OPTIONS)

$(VENV)/.tensorboard: $(VENV)/.installed
	tools/install.sh $(VENV) tensorboard
	touch $@

distill: setup $(if $(TENSORBOARD),$(VENV)/.tensorboard) ## the main job: data, teacher, audit, controls, distilled student, result table (JOBS=N arms side by side, on a GPU; TENSORBOARD=DIR)
	$(RECDISTILL) distill $(OPTIONS) $(if $(JOBS),--jobs $(JOBS)) $(if $(TENSORBOARD),--tensorboard "$(TENSORBOARD)")

quantize: setup ## int8 and 4-bit variants of student and teacher, each judged on ranking
	$(RECDISTILL) quantize $(OPTIONS)

export-onnx: setup ## the student as one ONNX graph: history in, top-K out
	$(RECDISTILL) export onnx $(OPTIONS)

export-trt: $(VENV)/.tensorrt ## the ONNX graph, and TensorRT engines from it
	$(RECDISTILL) export tensorrt $(OPTIONS)

$(VENV)/.triton: $(VENV)/.installed
	tools/install.sh $(VENV) triton
	touch $@

export-triton: $(VENV)/.triton ## a model repository for Triton Inference Server
	$(RECDISTILL) export triton $(OPTIONS)

verify: setup ## do all runtimes here rank as PyTorch does?
	$(RECDISTILL) export verify $(OPTIONS)

$(VENV)/.openvino: $(VENV)/.installed
	if tools/install.sh $(VENV) openvino; then touch $@; else echo "OpenVINO cannot be installed here: its row will say so" >&2; fi

bench: $(VENV)/.tensorrt $(VENV)/.openvino ## accuracy, latency, throughput and memory of every variant, one report (QUICK=1: a first look)
	$(RECDISTILL) bench $(OPTIONS) $(if $(QUICK),--quick)

bench-full: $(VENV)/.tensorrt $(VENV)/.openvino ## the same with the highest rate of requests each variant holds, sweeps of batch and catalogue, more runtimes
	$(RECDISTILL) bench $(OPTIONS) --set benchmark.full=true

BASE ?= origin/main
check-latency: setup ## the latency gate: is this checkout slower than BASE (a git revision, or an artefact beside HEAD=DIR)?
	$(RECDISTILL) bench check-latency "$(BASE)" $(OPTIONS) $(if $(HEAD),--head "$(HEAD)") $(if $(JUNIT),--junit "$(JUNIT)") \
	    $(if $(HISTORY),--history "$(HISTORY)")

$(VENV)-drift/.installed: tools/drift.txt
	$(PYTHON) -m venv $(VENV)-drift
	$(VENV)-drift/bin/python -m pip install --quiet --requirement tools/drift.txt
	touch $@

drift: $(VENV)-drift/.installed ## slow drift over many checks: change points in HISTORY=FILE (BASE_NAME: another base than the last)
	$(VENV)-drift/bin/python tools/drift.py "$(or $(HISTORY),$(error HISTORY=FILE is needed))" $(if $(BASE_NAME),--base "$(BASE_NAME)")

prove-gate: setup ## how often the gate is right (hours; goes on where it was interrupted)
	$(RECDISTILL) bench prove-gate $(OPTIONS)

smoke: $(VENV)/.dev ## the whole chain on constructed data in about a minute
	$(BIN)/pytest -q tests/test_smoke.py --durations=1

test: $(VENV)/.dev ## the test suite
	$(BIN)/pytest -q

test-gpu: $(VENV)/.dev ## the tests that need a CUDA device
	$(BIN)/pytest -q -m gpu

test-network: $(VENV)/.dev ## the tests that need the internet
	$(BIN)/pytest -q -m network

test-peers: $(VENV)-peers/.installed ## the tests that compare with other libraries (RecTools, rbo)
	$(VENV)-peers/bin/pytest -q -m peers

check: $(VENV)/.dev ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(VENV)/.dev ## format and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.audit: $(VENV)/.dev
	tools/install.sh $(VENV) audit
	touch $@

coverage: $(VENV)/.audit ## branch coverage of the domain and of what all stages share, by the whole test suite
	$(BIN)/pytest -q --cov --cov-report=term-missing:skip-covered

mutation: $(VENV)/.audit ## change the code of metrics, split and artefacts in hundreds of ways: which do the tests notice?
	OMP_NUM_THREADS=1 POLARS_MAX_THREADS=1 $(BIN)/mutmut run
	$(BIN)/mutmut export-cicd-stats
	@cat mutants/mutmut-cicd-stats.json

torture: $(VENV)/.dev ## kill, damage and feed nonsense to every stage, for hours (docs/results/torture.json)
	$(BIN)/python tools/torture.py

$(VENV)-peers/.installed: tools/peers.txt pyproject.toml constraints.txt tools/install.sh
	PYTHON=$(PYTHON) tools/install.sh $(VENV)-peers dev
	$(VENV)-peers/bin/python -m pip install --quiet --upgrade 'setuptools>=77' wheel
	$(VENV)-peers/bin/python -m pip install --quiet --no-deps --no-build-isolation --requirement tools/peers.txt
	touch $@

FOLDER ?= $(RUNS)/ml-100k/seed-0
peer-gptq: $(VENV)-peers/.installed ## optimum's GPTQ for the teacher, as a peer of ours (FOLDER=runs/DATASET/seed-S)
	$(VENV)-peers/bin/python tools/peer_gptq.py $(FOLDER)

peer-sasrec: $(VENV)-peers/.installed ## RecTools' SASRec, as a peer of control-id (FOLDER=runs/DATASET)
	$(VENV)-peers/bin/python tools/peer_sasrec.py $(FOLDER:%/seed-0=%)

clean: ## delete the environment and all runs
	rm -rf $(VENV) $(VENV)-peers $(VENV)-drift $(RUNS)
