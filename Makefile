# `make run` and `make test` do everything, set-up included.
PYTHON ?= python3.11
PORT ?= 8080
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export AIRFLOW__API__PORT ?= $(PORT)

.DEFAULT_GOAL := help
.PHONY: help run ui stage test test-slow test-gpu lint bench setup setup-test

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1  /p' $(MAKEFILE_LIST) | awk '{name = $$1; $$1 = ""; printf "make %-12s%s\n", name, $$0}'

run: setup  ## run the chain through Airflow on params.yaml, then print what came out
	@python -m tasks.runtime.run run

ui: setup  ## Airflow on http://127.0.0.1:8080 (PORT=8080); Ctrl-C stops it
	@python -m tasks.runtime.run ui

stage: setup  ## one stage, with what it needs: make stage NAME=search_embedding KEY=autodim
	@dvc repro $(or $(NAME),$(error NAME of the stage is missing: make stage NAME=search_embedding KEY=autodim))$(if $(KEY),@$(KEY))

test: setup-test  ## the default tests
	@python -m pytest --numprocesses 2 --dist loadfile

test-slow: setup-test  ## the calibrated and long tests
	@python -m pytest -m slow

test-gpu: setup-test  ## training on a GPU, beside the same on the CPU
	@CUDA_VISIBLE_DEVICES=0 python -m pytest tests/ctrmodels/training/test_cuda.py

lint: setup-test  ## ruff and mypy
	@ruff check . && mypy

bench: setup-test .venv-peers/installed  ## training speed beside the peers (hours on two cores)
	@python -m benchmarks.training --peers .venv-peers/bin/python

.venv-peers/installed: benchmarks/peers.txt constraints.txt
	@$(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/pip install -qq -c constraints.txt -r benchmarks/peers.txt "torch==$$(python -c 'import torch; print(torch.__version__)')"
	@touch $@

setup:
	@$(PYTHON) tools/setup.py

setup-test:
	@$(PYTHON) tools/setup.py test
