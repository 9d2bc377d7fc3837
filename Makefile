# Three commands on a fresh machine: `make demo`, `make serve` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := results/quickstart
JOBS ?= 2
COMPILED := build/compiled
TESTS ?= tests/serving tests/sim tests/policies tests/reports tests/loratory/test_watch.py

# Torch for CPUs: PyPI's own build for Linux brings several GB of CUDA.
TORCH ?= torch==2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
MODEL := smollm2-135m
MODELS := $(or $(LORATORY_MODELS),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/loratory/models)
ADAPTERS := json capitals one-word french pirate
PORT ?= 8000
REGISTRY := results/serve/adapters.db
TOKEN := $(dir $(REGISTRY))token

define ASK
When it listens, ask the base model and two adapters in another terminal:

curl -s http://127.0.0.1:$(PORT)/v1/chat/completions -H 'Content-Type: application/json' -d '$(call CHAT,$(MODEL))'
curl -s http://127.0.0.1:$(PORT)/v1/chat/completions -H 'Content-Type: application/json' -d '$(call CHAT,json)'
curl -s http://127.0.0.1:$(PORT)/v1/chat/completions -H 'Content-Type: application/json' -d '$(call CHAT,pirate)'

Swap its policy:

$(BIN)/loratory swap fair_share --token-file $(TOKEN) --url http://127.0.0.1:$(PORT)

endef
CHAT = {"model": "$(1)", "messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
export ASK

.PHONY: demo serve smollm2 test compiled test-compiled lint docs slow clean

demo: $(VENV)/.run
	$(BIN)/loratory run quickstart --out $(OUT)

serve: smollm2
	mkdir -p $(dir $(REGISTRY))
	for name in $(ADAPTERS); do \
		$(BIN)/loratory adapters add $$name $(MODELS)/$(MODEL)-adapters/$$name --registry $(REGISTRY) \
			--model $(MODELS)/$(MODEL)/config.json || exit; \
	done
	test -s $(TOKEN) || (umask 077; $(BIN)/python -c "import secrets; print(secrets.token_urlsafe())" > $(TOKEN))
	@echo "$$ASK"
	$(BIN)/loratory serve $(MODELS)/$(MODEL) --registry $(REGISTRY) --port $(PORT) --admin-token-file $(TOKEN) \
		--record $(dir $(REGISTRY))recording

# The model that is served, and adapters trained on it; tests use them where they are.
smollm2: $(VENV)/.serve
	$(BIN)/loratory models get $(MODEL)
	$(BIN)/python examples/train_adapters.py $(MODEL) $(MODELS)/$(MODEL)-adapters $(ADAPTERS)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

slow: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "slow or not slow"

# The package with a compiled core (docs/compiled.md), beside the sources: the tests compare the two.
compiled: $(COMPILED)/.built
	PYTHONSAFEPATH=1 PYTHONPATH=$(COMPILED) $(BIN)/python -m loratory --version

$(COMPILED)/.built: $(VENV)/.test setup.py $(shell find -L loratory -type f -not -name '*.pyc')
	rm -rf $(COMPILED)
	LORATORY_MYPYC=1 $(BIN)/python setup.py -q build --build-lib $(COMPILED) --build-temp build/temp
	touch $@

# Those of the core only, for CI; TESTS=... says what else. A safe path does not begin with this folder, whose sources are
# plain Python.
test-compiled: compiled
	PYTHONSAFEPATH=1 PYTHONPATH=$(COMPILED):. $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(TESTS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "docs: build/site/index.html"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.serve: $(VENV)/.run
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --retries 1 "$(TORCH)" --extra-index-url $(TORCH_INDEX)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[serve,train]"
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

$(VENV)/.docs: $(VENV)/.run
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) build results .pytest_cache .mypy_cache .ruff_cache
