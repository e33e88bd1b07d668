#!/usr/bin/env bash
# Runs the op's tests with other releases of torch, each in an environment of its own, against one wheel that is built
# once: tools/check_torch.sh torch==2.9.1 'torch>=2.15'. The wheel links nothing of torch, so it must serve them all.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: tools/check_torch.sh REQUIREMENT..., for example torch==2.9.1" >&2; exit 2; }
project=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/build"
"$work/build/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$work/dist" "$project"
# Apart from the sources (which the emulated CUDA kernels are compiled from), where `import jumpout_export` would find the folder that has no extension.
mkdir -p "$work/op/tests"
cp "$project/pyproject.toml" "$work/op"
cp -r "$project/tests/conftest.py" "$project/tests/support" "$project/tests/op" "$work/op/tests"
for torch in "$@"; do
  "$python" -m venv --clear "$work/env"
  "$work/env/bin/python" -m pip install --quiet --no-cache-dir "$torch" pytest pytest-timeout hypothesis scipy "$work"/dist/*.whl
  "$work/env/bin/python" -c "import torch; print('torch', torch.__version__)"
  (cd "$work/op" && OMP_NUM_THREADS=1 "$work/env/bin/python" -m pytest -m "not cuda" --ignore tests/op/test_emulated.py tests/op)
done
