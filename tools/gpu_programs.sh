#!/usr/bin/env bash
# Builds what needs neither Python nor torch: FOLDER/check, every CUDA kernel against the CPU kernels (tests/cpp/cuda),
# and FOLDER/times, the kernels beside a copy (benchmarks/cuda_times.cpp).
#   tools/gpu_programs.sh FOLDER 90         with nvcc for sm_90; can be done on a machine without a GPU and carried along
#   tools/gpu_programs.sh FOLDER emulated   with g++ for the emulator; times then mean nothing
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1 arch=$2
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
include="-Icpp/op -Itests/cpp/cuda"

for source in jumpout_cpu cpu_select cpu_scalar; do
  g++ -std=c++17 -O2 -ffp-contract=off $include -c cpp/op/$source.cpp -o "$work/$source.o"
done
if [ "$arch" = emulated ]; then
  toolkit=$(nvcc -dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')
  compile="g++ -std=c++17 -O1 -ffp-contract=off -pthread -Wno-unknown-pragmas $include -isystem $toolkit/include"
  for source in fiber emulator runtime; do $compile -O2 -c tests/cpp/cuda/$source.cpp -o "$work/$source.o"; done
  compile="$compile -include tests/cpp/cuda/emulator.h -x c++"
  link="g++ -pthread"
else
  compile="nvcc -std=c++17 -O3 -arch=sm_$arch -fmad=false -Xcompiler=-ffp-contract=off $include -x cu"
  link="nvcc -arch=sm_$arch --cudart static"
fi
$compile -c cpp/op/jumpout_cuda.cu -o "$work/jumpout_cuda.o"
objects=$(ls "$work"/*.o)
$compile -c tests/cpp/cuda/check.cpp -o "$work/main.check"
$compile -c benchmarks/cuda_times.cpp -o "$work/main.times"
for program in check times; do
  cp "$work/main.$program" "$work/main.o"
  $link $objects "$work/main.o" -o "$out/$program"
done
