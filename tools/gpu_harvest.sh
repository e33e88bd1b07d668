#!/usr/bin/env bash
# The most that ten minutes on a machine with a GPU can give, in the order of its worth. Goes on after a failure, prints
# a table last, and leaves logs and JSON under one folder; what passed is not run again, so a second call goes on where
# time ran out. Nothing is downloaded.
#   tools/gpu_harvest.sh     in the Python that is there (PYTHON=), with its torch
# OUT=build/gpu       the results; programs built elsewhere by tools/gpu_programs.sh may lie there already
# BUDGET=560          seconds for all
# WHEELS=             a folder of wheels that this Python lacks (pip download pydantic --python-version ... -d FOLDER)
# DRY=1               here, without a GPU: the emulator in place of the device, to see that every step starts
set -u
cd "$(dirname "$0")/.."
out=${OUT:-build/gpu} budget=${BUDGET:-560} python=${PYTHON:-python3} dry=${DRY:-}
mkdir -p "$out/site"
out=$(realpath "$out")  # steps change the folder
export PYTHONPATH="$out/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
names=()

step() {  # name, seconds, command: its output to NAME.log, its end to NAME.rc; at most what is left of the budget
  local name=$1 limit=$2 left=$((budget - SECONDS)) start=$SECONDS
  shift 2
  names+=("$name")
  if [ "$(cat "$out/$name.rc" 2>/dev/null)" = 0 ]; then return; fi
  if [ $left -lt 5 ]; then
    echo "no time was left" >"$out/$name.log"
    echo 3 >"$out/$name.rc"
    return
  fi
  timeout $((limit < left ? limit : left)) "$@" >"$out/$name.log" 2>&1
  echo $? >"$out/$name.rc"
  echo $((SECONDS - start)) >"$out/$name.seconds"
}

if [ -z "$dry" ] && ! nvidia-smi >/dev/null 2>&1; then
  echo "gpu: not run: nvidia-smi finds no GPU here; DRY=1 runs the kernels on the emulator instead" >&2
  exit 3
fi
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d .)
arch=${capability:-90} large=--large largest=$((1 << 27)) architectures="-C cmake.define.CMAKE_CUDA_ARCHITECTURES=${capability:-90}-real"
if [ -n "$dry" ]; then arch=emulated large=--small largest="$((1 << 12)) 1"; fi

# 1. Truth, without torch.
step gpu 10 nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,memory.total --format=csv
"$out/check" --small --one-in 1000 >/dev/null 2>&1 || rm -f "$out/programs.rc"
step programs 90 tools/gpu_programs.sh "$out" "$arch"
step check 60 "$out/check" $large
for tool in memcheck racecheck initcheck synccheck; do
  step $tool 40 compute-sanitizer --tool $tool --error-exitcode 1 "$out/check" --small --exact --one-in 20
done
# 2. Times beside a copy, and what the profiler says of the kernels.
step times 60 bash -c "'$out/times' $largest >'$out/times.json'"
step ncu 40 ncu --csv --clock-control none --kernel-name 'regex:apply|backward|count' --launch-count 6 \
  --section SpeedOfLight --section WarpStateStats --section Occupancy "$out/times" $((1 << 22))
# 3. With torch: one architecture, the CUDA tests, a cut benchmark.
if [ -n "${WHEELS:-}" ]; then
  step wheels 30 "$python" -m pip install -q --no-index --no-deps --target "$out/site" "$WHEELS"/*.whl
fi
if [ -z "$dry" ]; then
  step build 150 "$python" -m pip install -q --no-build-isolation --no-deps --target "$out/site" . \
    -C cmake.define.JUMPOUT_CUDA=ON $architectures
  export JUMPOUT_REQUIRE_CUDA=1
fi
# In a folder of its own, so that the package that was built is imported and not the source beside it, and without the
# settings of pyproject.toml, which need plugins.
mkdir -p "$out/tests"
cp -r tests "$out/tests/"
printf '[pytest]\npythonpath = tests\naddopts = --import-mode=importlib\nmarkers =\n    cuda\n' >"$out/tests/pytest.ini"
step pytest-cuda 120 bash -c "cd '$out/tests' && '$python' -m pytest -q -p no:cacheprovider tests/op/test_cuda.py"
if [ -z "$dry" ]; then
  step bench-op 150 "$python" benchmarks/op.py --device cuda --seconds 0.2 --out "$out/op-cuda.json"
  step bench-training 60 bash -c "'$python' benchmarks/training.py --device cuda --seconds 2 && cp benchmarks/results/training-cuda.json '$out'"
fi

"$python" - "$out" "${names[@]}" <<'END'
import json
import sys
from pathlib import Path

out = Path(sys.argv[1])


def read(name):
    file = out / name
    return file.read_text(errors="replace").strip() if file.exists() else ""


rows = []
for step in sys.argv[2:]:
    last = (read(f"{step}.log").splitlines() or [""])[-1]
    row = {"step": step, "exit_code": int(read(f"{step}.rc")), "seconds": read(f"{step}.seconds"), "last_line": last}
    rows.append(row)
    print("{step:14} exit code {exit_code:3}  {seconds:>3} s  {last_line:.100}".format(**row))
(out / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
sys.exit(any(row["exit_code"] for row in rows))
END
