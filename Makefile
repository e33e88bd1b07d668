# Two commands matter: `make demo` and `make test`. Both set up everything they need, and are quick the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := CMakeLists.txt pyproject.toml $(wildcard cpp/op/*)
MODEL ?= runs/demo/model.onnx
PACKAGE_DIRS := jumpout_export tests examples benchmarks experiments

.PHONY: help setup demo replay test test-fast test-floors providers bench paper paper-gpu cuda-check cuda-sass gpu gpu-verify lint lint-release docs typecheck package format schema emulate emulate-mutants clean

help:  ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/built  ## make .venv, install what constraints.txt pins, build the extension

$(VENV)/installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python tools/requirements.py dev | $(BIN)/python -m pip install --quiet -c constraints.txt -r /dev/stdin
	@touch $@

$(VENV)/built: $(VENV)/installed $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

demo: setup  ## train on real images, check, recalibrate, export, verify; writes runs/demo
	$(BIN)/jumpout-export demo $(if $(DATA),--data $(DATA))

replay: setup $(MODEL)  ## build the C++ programs and replay MODEL= (default the demo's, made if there is none)
	PYTHON=$(BIN)/python tools/build_replay.sh
	build/replay/jumpout-replay $(MODEL)

runs/demo/model.onnx: | setup
	$(BIN)/jumpout-export demo

test: setup  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(TESTS)

test-fast: setup  ## run the unit tests alone, in about a minute; one that takes long fails: mark it `integration`
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not integration" --timeout 20 --durations 5 $(TESTS)

# The oldest release that pyproject.toml allows of everything, and the torch of constraints.txt.
FLOORS := build/floors
$(FLOORS)/built: pyproject.toml constraints.txt tools/requirements.py $(SOURCES)
	$(PYTHON) -m venv --clear $(FLOORS)
	$(PYTHON) tools/requirements.py dev --floors > $(FLOORS)/requirements.txt
	grep '^torch==' constraints.txt | $(FLOORS)/bin/python -m pip install --quiet -c /dev/stdin -r $(FLOORS)/requirements.txt
	$(FLOORS)/bin/python -m pip install --quiet --no-build-isolation --no-deps -C build-dir=build/{wheel_tag}-floors --editable .
	@touch $@

# What is old may warn of what is new beside it.
FLOORS_PYTEST = OMP_NUM_THREADS=1 $(FLOORS)/bin/python -m pytest -n 2 -W default::DeprecationWarning \
  $(shell sed -n 's/^tests/--deselect tests/p' tests/not-at-the-floors.txt)

test-floors: $(FLOORS)/built  ## the unit tests and the command line's with the oldest packages that pyproject.toml allows (8 minutes)
	$(FLOORS_PYTEST) -m "not slow and not integration" $(TESTS)
	$(FLOORS_PYTEST) -m "not slow and integration" tests/cli tests/render tests/export/test_architectures.py

# An ONNX Runtime with another provider is the same import package: it has an environment of its own.
PROVIDERS := build/providers
$(PROVIDERS)/openvino/installed: constraints.txt
	$(PYTHON) -m venv --clear $(PROVIDERS)/openvino
	$(PROVIDERS)/openvino/bin/python -m pip install --quiet -c constraints.txt onnxruntime-openvino
	@touch $@

providers: setup $(PROVIDERS)/openvino/installed  ## make the environments that other providers run in, and run their tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m provider $(TESTS)

bench: setup  ## check, time, write benchmarks/results/*.json, the README's tables and the plot (25 minutes)
	$(BIN)/python benchmarks/op.py
	$(BIN)/python benchmarks/training.py
	PYTHON=$(BIN)/python tools/build_replay.sh
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/export.py
	$(BIN)/python benchmarks/proof.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/batch_sizes.py
	$(BIN)/python benchmarks/readme.py

paper: setup  ## the paper's tables and figures on DATA=, a folder with CIFAR-10, sized for two CPU cores (an hour)
	$(if $(DATA),,$(error make paper needs DATA=, a folder with CIFAR-10: train/CLASS/*.png and test/CLASS/*.png or a standard distribution))
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.paper --data $(DATA)

paper-gpu:  ## the full protocol of CIFAR10(s) on DATA= and a GPU, in the Python that is there
	$(if $(DATA),,$(error make paper-gpu needs DATA=, a folder with CIFAR-10: train/CLASS/*.png and test/CLASS/*.png or a standard distribution))
	$(PYTHON) -m experiments.paper --data $(DATA) --protocol gpu --workers 3

emulate: setup  ## the CUDA kernels on an emulator against the CPU kernels, with ASan, UBSan and TSan; needs nvcc's headers, no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/op/test_emulated.py

emulate-mutants: setup  ## plant each bug of tests/cpp/cuda/mutants.toml in the CUDA kernels and show what finds it (10 minutes)
	$(BIN)/python tools/emulate_mutants.py

build/cuda-check/built: $(VENV)/built $(SOURCES)
	@mkdir -p build
	cmake -S . -B build/cuda-check -DJUMPOUT_CUDA=ON -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) -DSKBUILD_PROJECT_VERSION=check >build/cuda-check.log 2>&1 \
	  || { cat build/cuda-check.log; exit 1; }
	cmake --build build/cuda-check
	@touch $@

cuda-check: build/cuda-check/built  ## compile the CUDA kernels and prove what their machine code shows; needs nvcc, no GPU
	$(BIN)/python tools/sass.py build/cuda-check

cuda-sass: build/cuda-check/built  ## the same, and write benchmarks/results/sass.json and the tables that follow from it
	$(BIN)/python tools/sass.py build/cuda-check --write
	$(BIN)/python benchmarks/readme.py

gpu:  ## ten minutes on a machine with a GPU: the kernels' check, sanitizers, times, CUDA tests, benchmarks; DRY=1 without one
	PYTHON=$(PYTHON) tools/gpu_harvest.sh

gpu-verify:  ## on a machine with a GPU: prove exports on CUDA node by node, time them; ONNXRUNTIME_WHEELS= without a network
	PYTHON=$(PYTHON) ONNXRUNTIME_WHEELS=$(ONNXRUNTIME_WHEELS) BUDGET=$(BUDGET) tools/gpu_verify.sh

lint: setup  ## ruff, clang-format, codespell
	$(BIN)/ruff check $(PACKAGE_DIRS) tools
	$(BIN)/ruff format --check $(PACKAGE_DIRS) tools
	$(BIN)/clang-format --dry-run --Werror $(shell find cpp benchmarks tests examples -name '*.cpp' -o -name '*.h' -o -name '*.cu')
	$(BIN)/codespell $(PACKAGE_DIRS) cpp docs README.md CHANGELOG.md CONTRIBUTING.md

build/docs/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear build/docs
	$(PYTHON) tools/requirements.py docs | build/docs/bin/python -m pip install --quiet -c constraints.txt -r /dev/stdin
	@touch $@

docs: build/docs/installed  ## the site, in build/site; a warning or a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 PATH=$(abspath build/docs/bin):$$PATH build/docs/bin/mkdocs build --quiet --site-dir build/site

build/lint-release/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear build/lint-release
	$(PYTHON) tools/requirements.py release | build/lint-release/bin/python -m pip install --quiet -c constraints.txt -r /dev/stdin
	@touch $@

lint-release: build/lint-release/installed  ## the workflows, what describes the project, the shell scripts and the Dockerfile
	build/lint-release/bin/zizmor --offline .github
	build/lint-release/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	build/lint-release/bin/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	build/lint-release/bin/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	build/lint-release/bin/check-jsonschema --builtin-schema vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	build/lint-release/bin/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	build/lint-release/bin/validate-pyproject pyproject.toml
	build/lint-release/bin/shellcheck --severity error --exclude SC1087 $(wildcard tools/*.sh) .ci/run  # 1087: jumpout-export[extra]
	build/lint-release/bin/hadolint examples/container/Dockerfile

typecheck: setup  ## mypy, strict
	$(BIN)/mypy

package:  ## build the sdist and the wheel, and try the wheel in an empty environment
	PYTHON=$(PYTHON) tools/check_package.sh

format: setup  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix-only $(PACKAGE_DIRS) tools
	$(BIN)/ruff format $(PACKAGE_DIRS) tools
	$(BIN)/clang-format -i $(shell find cpp benchmarks tests examples -name '*.cpp' -o -name '*.h' -o -name '*.cu')

schema: setup  ## write docs/report.schema.json anew
	$(BIN)/python -c "import json; from jumpout_export.report import json_schema; print(json.dumps(json_schema(), indent=2))" > docs/report.schema.json

clean:  ## remove everything that was made
	rm -rf $(VENV) build dist runs *.egg-info .pytest_cache .mypy_cache .ruff_cache
