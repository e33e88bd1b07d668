#!/usr/bin/env bash
# Proves without ARM hardware that the CPU kernels give the same bits on every instruction set: builds the extension and
# tests/cpp/kernel_digests.cpp for this machine and for 64-bit ARM with this project's own flags, runs the digests here
# and under QEMU's user emulation, once per instruction set, and compares them all. Emulation says nothing about speed.
# Debian, Ubuntu: apt-get install g++ g++-aarch64-linux-gnu qemu-user; Python needs cmake, ninja and pybind11 (make setup).
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
PATH=$(dirname "$python"):$PATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for tool in cmake ninja g++ aarch64-linux-gnu-g++ qemu-aarch64; do
  command -v $tool >/dev/null || { echo "error: there is no $tool; see the head of $0"; exit 3; }
done

build() {  # folder, further CMake options
  local folder=$1
  shift
  echo "building $folder"
  {
    cmake -S . -B "$work/$folder" -G Ninja -DJUMPOUT_CUDA=OFF -DJUMPOUT_KERNEL_DIGESTS=ON -DSKBUILD_PROJECT_VERSION=check \
      -DPython_EXECUTABLE="$python" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" "$@"
    cmake --build "$work/$folder"
  } >"$work/log" 2>&1 || { tail -40 "$work/log"; exit 1; }
}

build here
build arm -DCMAKE_CXX_FLAGS=-Werror -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++

compare() {  # instruction set, command that prints its digests
  local name=$1 status=0
  shift
  JUMPOUT_CPU_ISA=${name##*-} "$@" >"$work/$name" 2>"$work/log" || status=$?
  if [ $status -eq 3 ]; then
    echo "$name: not run, this processor does not have it"
  elif [ $status -ne 0 ]; then
    echo "error: $name:"
    tail -2 "$work/$name"
    cat "$work/log"
    exit 1
  elif ! cmp --silent "$work/here-scalar" "$work/$name"; then
    diff "$work/here-scalar" "$work/$name" >"$work/log" || true
    echo "error: $name differs from the portable kernels here in $(grep -c '^>' "$work/log") cases, first:"
    grep -m 1 '^>' "$work/log"
    exit 1
  else
    echo "$name: $(wc -l <"$work/$name") cases, the same bits as the portable kernels here"
  fi
}

JUMPOUT_CPU_ISA=scalar "$work/here/kernel_digests" >"$work/here-scalar" || { tail -1 "$work/here-scalar"; exit 1; }
for isa in avx2 avx512 avx512_bf16; do compare here-$isa "$work/here/kernel_digests"; done
for isa in scalar neon; do compare arm-$isa qemu-aarch64 -L /usr/aarch64-linux-gnu "$work/arm/kernel_digests"; done
