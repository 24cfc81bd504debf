# hotledger: everything below needs only Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test test-long torture lint format bench clean
help:            ## this list
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed 's/:.*##/  -/'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hotledger needs Python >= 3.11; set PYTHON=... to choose one")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench,test,lint]'
	@touch $(STAMP)

demo: $(STAMP)   ## a simulated mobile-money day on embedded servers, reconciled
	$(BIN)/hotledger demo

test: $(STAMP)   ## every test, against real Valkey, Redis and Postgres
	$(BIN)/python -m pytest

test-long: $(STAMP) ## the oracle against the engine, and the ledger, for 20,000 random steps each; a minute of torture, planted bugs
	HOTLEDGER_MODEL_STEPS=20000 $(BIN)/python -m pytest tests/property
	HOTLEDGER_WATCH_S=60 $(BIN)/python -m pytest tests/integration/test_watch.py -k under_load
	HOTLEDGER_TORTURE_SECONDS=60 HOTLEDGER_PLANTED_BUGS=1 $(BIN)/python -m pytest tests/torture
	HOTLEDGER_HTTP_FUZZ=100000 HOTLEDGER_HTTP_EXAMPLES=200 $(BIN)/python -m pytest tests/http/test_forms.py tests/http/test_openapi.py

torture: $(STAMP) ## ten minutes of payments while everything breaks, and an audit of every answer
	$(BIN)/hotledger torture --seconds 600

lint: $(STAMP)   ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP) ## rewrite to the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## the figures of README, measured here
	$(BIN)/python -m bench engine
	$(BIN)/python -m bench ledger
	$(BIN)/python -m bench durability

clean:           ## remove what was built
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
