#!/usr/bin/env bash
# One command for a machine with a GPU: builds into the Python that is there (with its torch and nvcc), then runs the
# tests with CUDA required, compute-sanitizer on a small driver and the benchmarks. Writes benchmarks/results/*-cuda.json.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.cuda.is_available(), "torch sees no CUDA device"; print(torch.__version__, torch.cuda.get_device_name())'
"$python" -m pip install --no-build-isolation --no-deps --editable . -C cmake.define.JUMPOUT_CUDA=ON
JUMPOUT_REQUIRE_CUDA=1 "$python" -m pytest tests -m cuda
JUMPOUT_REQUIRE_CUDA=1 "$python" -m pytest tests -m "not cuda" -k "jumpout"
for tool in memcheck racecheck initcheck; do
  compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" tests/cuda_driver.py
done
"$python" benchmarks/op.py --device cuda
"$python" benchmarks/training.py --device cuda
