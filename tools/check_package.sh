#!/usr/bin/env bash
# Proves the package as users get it: sdist -> wheel -> an empty environment, then the demo from another folder.
# `pip install .` in isolation needs no torch to build; the wheel holds no tests; a source tree without the extension
# says which command fixes it.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet -c "$project/constraints.txt" build
echo "building sdist and, from it, the wheel (in isolation, without torch)"
"$work/build/bin/python" -m build --outdir "$work/dist" "$project" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
ls -l "$work/dist"

"$python" -m venv "$work/env"
wheel=$(echo "$work"/dist/*.whl)
echo "installing the wheel into an empty environment"
"$work/env/bin/python" -m pip install --quiet -c "$project/constraints.txt" "$wheel[demo]"
cd "$work"
"$work/env/bin/jumpout-export" info
"$work/env/bin/jumpout-export" demo --out "$work/out" --epochs 4
test -s "$work/out/model.onnx" && test -s "$work/out/report.html"

echo "a source tree without the extension names the command that builds it"
mkdir "$work/source"
cp -r "$project/jumpout_export" "$work/source/"
find "$work/source" -name '_C*.so' -delete
cd "$work/source"
if message=$("$work/env/bin/python" -c 'import jumpout_export' 2>&1); then
  echo "error: the import succeeded without an extension"
  exit 1
fi
grep -q 'pip install' <<<"$message" || { echo "$message"; exit 1; }
echo "package: ok"
