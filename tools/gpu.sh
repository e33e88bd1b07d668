#!/usr/bin/env bash
# One command for a machine with a GPU: builds into the Python that is there (with its torch and nvcc), then runs the
# op's tests with CUDA required, compute-sanitizer on a small driver and the benchmarks. Writes
# benchmarks/results/*-cuda.json. Downloads nothing: what is missing is named first, and the exit code is 3.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

unverified() {
  echo "gpu: not run: $1" >&2
  exit 3
}

command -v "$python" >/dev/null || unverified "there is no $python"
modules=$("$python" - <<'END'
import importlib.util

# As imported: as installed with pip.
needed = {"torch": "torch", "numpy": "numpy", "pydantic": "pydantic", "pytest": "pytest", "scipy": "scipy"}
needed |= {"pytest_timeout": "pytest-timeout", "pybind11": "pybind11", "scikit_build_core": "scikit-build-core"}
print(" ".join(package for name, package in needed.items() if importlib.util.find_spec(name) is None))
END
)
[ -z "$modules" ] || unverified "$python lacks $modules: $python -m pip install $modules"
for tool in nvcc cmake c++ compute-sanitizer; do
  command -v "$tool" >/dev/null || unverified "there is no $tool on the PATH"
done
"$python" -c 'import sys, torch; torch.cuda.is_available() or sys.exit(1); print(torch.__version__, torch.cuda.get_device_name())' ||
  unverified "the torch of $python sees no CUDA device"

"$python" -m pip install --no-build-isolation --no-deps --editable . -C cmake.define.JUMPOUT_CUDA=ON
# The other test files need packages that have nothing to do with the GPU.
JUMPOUT_REQUIRE_CUDA=1 "$python" -m pytest tests/op
for tool in memcheck racecheck initcheck; do
  compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" tests/support/cuda_driver.py
done
"$python" benchmarks/op.py --device cuda
"$python" benchmarks/training.py --device cuda
