#!/usr/bin/env bash
# Builds the C++ library and programs against the ONNX Runtime in a Python's wheel: build/replay/jumpout-replay and
# jumpout-load, installed in build/prefix; with what is installed, build/classify/classify. With `sanitize`:
# build/replay-sanitize with replay-fuzz instead. Exit code 3: a compiler, CMake or the headers cannot be had here.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
folder=$(cd "$(dirname "$(command -v "$python")")" && pwd)
python=$folder/$(basename "$python")
PATH=$folder:$PATH # its CMake and Ninja
for tool in cmake ninja "${CXX:-c++}"; do
  command -v "$tool" >/dev/null || { echo "there is no $tool: apt-get install g++ cmake ninja-build" >&2; exit 3; }
done
mkdir -p build
exec 9>build/replay.lock # two at a time would disturb each other
flock 9
headers=$(tools/onnxruntime_headers.sh)

build() { # FOLDER SOURCE OPTIONS...
  local folder=$1 source=$2
  shift 2
  mkdir -p "$folder"
  { cmake -S "$source" -B "$folder" -G Ninja -DCMAKE_COMPILE_WARNING_AS_ERROR=ON "$@" && cmake --build "$folder"; } \
    >"$folder/log" 2>&1 || { cat "$folder/log" >&2; exit 1; }
}

runtime=(-DONNXRUNTIME_PYTHON="$python" -DONNXRUNTIME_INCLUDE_DIR="$headers")
if [ "${1:-}" = sanitize ]; then
  echo 'int main() {}' | "${CXX:-c++}" -fsanitize=address,undefined -x c++ - -o build/replay-sanitizers 2>/dev/null ||
    { echo "the compiler has no AddressSanitizer and UndefinedBehaviorSanitizer" >&2; exit 3; }
  build build/replay-sanitize cpp/replay "${runtime[@]}" -DJUMPOUT_SANITIZE=ON
else
  build build/replay cpp/replay "${runtime[@]}"
  cmake --install build/replay --prefix build/prefix >build/replay/log
  build build/classify examples/cpp -DCMAKE_PREFIX_PATH="$PWD/build/prefix"
fi
