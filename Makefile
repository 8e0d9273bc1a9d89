# make demo    a pretrained network, fine-tuned on real product images, scored, and turned into a submission
# make test    all tests
# make check   lint, format, types, fast tests, and a report of sizes: the gate before a commit
# make lint    the same without the tests
PYTHON ?= python3
BIN := .venv/bin
# One torch thread a test process: two processes on two cores get on better than one with two threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: demo test check lint format docs clean

demo: .venv/installed
	$(BIN)/python -m tools.demo

test: .venv/installed-dev
	$(PYTEST)

check: lint
	$(PYTEST) -m "not slow"
	$(BIN)/python -m tools.sizes

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed-dev
	$(BIN)/python -m tools.docs

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache

.venv/installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
