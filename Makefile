# make demo    a pretrained network, fine-tuned on real product images, scored, and turned into a submission
# make test    all tests
# make check   lint, format, types, fast tests, and a report of sizes: the gate before a commit
# make lint    the same without the tests
# make test-gpu           on a machine with an NVIDIA GPU: the tests of the GPU, then timings
# make test-pythons       the fast tests on each Python that is there; each takes its own torch of several GB
# make test-lower-bounds  the fast tests with the oldest torch and NumPy that requirements.txt allows
PYTHON ?= python3
PYTHONS ?= python3.11 python3.12 python3.13
VENV ?= .venv
BIN := $(VENV)/bin
# One torch thread a test process: two processes on two cores get on better than one with two threads.
# No GPU: most tests compare bits, which a GPU gives with --deterministic alone. `make test-gpu` has the GPU's own tests.
PYTEST := CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

STEP_ROWS := "ours, engine" "ours, engine, no guard" "ours, engine, EMA" "timm, step bf16" \
	"ours, engine, compiled" "timm, step bf16, compiled"
LOOP_ROWS := "ours, step" "ours, loader jpeg" "ours, loop jpeg" "timm channels_last bf16"

.PHONY: demo test check lint format docs clean test-fast test-gpu bench-gpu test-pythons test-lower-bounds

demo: $(VENV)/installed
	$(BIN)/python -m tools.demo

test: $(VENV)/installed-dev
	$(PYTEST)

test-fast: $(VENV)/installed-dev
	$(PYTEST) -m "not slow"

check: lint
	$(PYTEST) -m "not slow"
	$(BIN)/python -m tools.sizes

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy .

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed-dev
	$(BIN)/python -m tools.docs

# One process: two would share the GPU's memory. Timings come last, and are reported: a slow GPU fails no test.
test-gpu: $(VENV)/installed-dev
	@$(BIN)/python -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'make test-gpu: torch finds no GPU')"
	$(BIN)/python -m pytest -n 0 -m "cuda or device" -rs
	$(MAKE) bench-gpu

bench-gpu: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.train --gpu 0 --precision bf16 --networks ResNet50:224:256 EfficientNet-Lite0:224:256 \
		--only $(STEP_ROWS) --out results/benchmarks/gpu_step
	$(BIN)/python -m benchmarks.train --gpu 0 --precision bf16 --networks ResNet50:224:256 EfficientNet-Lite0:224:256 \
		--only $(LOOP_ROWS) --rounds 2 --workers $$(nproc) --out results/benchmarks/gpu_loop
	$(BIN)/python -m benchmarks.input --gpu 0 --rounds 2 --workers $$(nproc) --scale 224 --epochs 8 \
		--only ours "ours, processes" timm --out results/benchmarks/gpu_input

# A Python is looked for in PATH, then among pyenv's; pyenv's shims in PATH fail where its version is not chosen.
test-pythons:
	@set -e; for name in $(PYTHONS); do \
		python=; \
		for at in "$$(command -v $$name)" "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/*/bin/$$name; do \
			if "$$at" -c "" 2>/dev/null; then python="$$at"; break; fi; \
		done; \
		if [ -z "$$python" ]; then echo "$$name is not here: left out"; continue; fi; \
		echo "$$name is $$python"; \
		$(MAKE) test-fast VENV=.venv-$${name#python} PYTHON="$$python"; \
	done

test-lower-bounds:
	mkdir -p .venv-lower
	sed -nE 's/^(torch|numpy)>=([0-9.]+).*/\1==\2.*/p' requirements.txt > .venv-lower/constraints.txt
	PIP_CONSTRAINT="$(CURDIR)/.venv-lower/constraints.txt" $(MAKE) test-fast VENV=.venv-lower

clean:
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache

$(VENV)/installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
