#!/usr/bin/env bash
# One command for a machine with a GPU: proves exported files in ONNX Runtime on CUDA, node by node, and times them
# against PyTorch. Uses the torch of $PYTHON and makes an environment on top of it, build/gpu-verify. Without a network
# ONNXRUNTIME_WHEELS names a folder with the wheels of onnxruntime-gpu, onnx, onnxscript and what they need (and, where
# this machine cannot compile, of jumpout-export), or with their pieces, see wheel_pieces.sh. BUDGET= is the seconds after
# which nothing more is timed. Writes benchmarks/results/gpu-verify.json. Exit codes: 0 all proven,
# 1 a check failed, 3 it could not be verified here, and one line that says why. `--device cpu` is a dry run.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
environment=build/gpu-verify
device=cuda
[ "${1:-}" != --device ] || device=${2:?cpu or cuda}

unverified() {
  echo "gpu-verify: not verified: $1" >&2
  exit 3
}

command -v "$python" >/dev/null || unverified "there is no $python"
found=$("$python" - "$device" 2>&1 <<'END'
import sys
if sys.version_info < (3, 11):
    sys.exit(f"{sys.executable} is Python {sys.version.split()[0]}, 3.11 is needed")
try:
    import torch
except ImportError as error:
    sys.exit(f"{sys.executable} has no usable torch: {error}")
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} of {sys.executable} sees no CUDA device")
print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if sys.argv[1] == 'cuda' else 'CPU'}")
END
) || unverified "$(tail -n 1 <<<"$found")"
echo "$found"

"$python" -m venv "$environment" || unverified "$python cannot make a virtual environment"
# What that Python has is seen too, also where it is a virtual environment itself; what is installed here comes first.
"$python" -c 'import sys; print(*(path for path in sys.path if path.endswith("-packages")), sep="\n")' \
  >"$(echo "$environment"/lib/python*/site-packages)/parent.pth"
python=$PWD/$environment/bin/python
install=("$python" -m pip install --quiet)
if [ -n "${ONNXRUNTIME_WHEELS:-}" ]; then
  [ -d "$ONNXRUNTIME_WHEELS" ] || unverified "ONNXRUNTIME_WHEELS=$ONNXRUNTIME_WHEELS is no folder"
  if [ -f "$ONNXRUNTIME_WHEELS/sha256sums" ]; then
    tools/wheel_pieces.sh join "$ONNXRUNTIME_WHEELS" "$environment/wheels" >/dev/null 2>&1 ||
      unverified "the pieces of wheels in $ONNXRUNTIME_WHEELS are not whole"
    ONNXRUNTIME_WHEELS=$environment/wheels
  fi
  install+=(--no-index --find-links "$ONNXRUNTIME_WHEELS")
fi
# The torch that is there stays as it is, and is not asked what it would like beside it.
"$python" tools/requirements.py onnx-gpu | grep -v '^torch[>=]' >"$environment/requirements.txt"
"${install[@]}" -r "$environment/requirements.txt" ||
  unverified "the packages above cannot be had; without a network, put their wheels into a folder and name it with ONNXRUNTIME_WHEELS="
if ! "${install[@]}" --no-build-isolation --no-deps --force-reinstall \
  -C build-dir="$environment/extension" . >"$environment/build.log" 2>&1; then
  # A wheel of it from the folder, where nothing can be compiled.
  { [ -n "${ONNXRUNTIME_WHEELS:-}" ] && "${install[@]}" --no-deps jumpout-export >>"$environment/build.log" 2>&1; } ||
    unverified "the extension cannot be built ($(tail -n 1 "$environment/build.log")); it needs a C++ compiler, scikit-build-core, pybind11, cmake and ninja, see $environment/build.log"
fi
# ONNX Runtime looks for CUDA libraries beside itself only, torch may have brought them elsewhere.
libraries=$("$python" -c 'import glob, sys; print(":".join(name for path in sys.path if path for name in glob.glob(path + "/nvidia/*/lib")))')
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

exec "$python" benchmarks/gpu_verify.py ${BUDGET:+--budget "$BUDGET"} "$@"
