#!/usr/bin/env bash
# Proves a repaired wheel where nothing but Python and torch is: a Debian without a compiler and without libgomp.
#   tools/check_bare.sh WHEELS [ROOT]     WHEELS holds the wheel for this machine and CPython 3.11; needs root and debootstrap
# The demo runs there, several threads compute, and the process has mapped one OpenMP runtime: torch's.
# REPLAY=build/replay/jumpout-replay, if it is built, repeats the proof of the demo's file there, too.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: tools/check_bare.sh WHEELS [ROOT]" >&2; exit 2; }
project=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3.11}  # the Python of Debian 12, for which the packages are fetched
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=${2:-$work/root}
replay=${REPLAY:-$project/build/replay/jumpout-replay}

wheels=("$1"/jumpout_export-*-cp311-*linux*_"$(uname -m)".whl)
[ ${#wheels[@]} = 1 ] && [ -f "${wheels[0]}" ] || { echo "error: $1 needs one wheel for cp311 on $(uname -m): ${wheels[*]}" >&2; exit 2; }
wheel=${wheels[0]}
echo "fetching what ${wheel##*/} needs"
"$python" -m pip download --quiet --only-binary :all: -c "$project/constraints.txt" -d "$work/packages" "$wheel[demo]"
if [ ! -x "$root/usr/bin/python3" ]; then
  echo "a Debian with Python alone"
  debootstrap --variant=minbase --include=python3,python3-venv bookworm "$root" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
fi
for absent in gcc cc libgomp.so.1; do
  found=$(find "$root/usr/bin" "$root/usr/lib" -name "$absent" ! -type d -print -quit)
  [ -z "$found" ] || { echo "error: $root has $found: it is not bare" >&2; exit 2; }
done
rm -rf "$root/bare" "$root/env"
mkdir -p "$root/bare"
cp -r "$work/packages" "$root/bare"
cp "$project/tools/one_openmp.py" "$root/bare"
# /proc: for the memory map, and the number of processors.
mount -t proc proc "$root/proc"
trap 'umount "$root/proc"; rm -rf "$work"' EXIT
inside() { chroot "$root" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/root LANG=C.UTF-8 "$@"; }
inside python3 -m venv /env
inside sh -c '/env/bin/python -m pip install --quiet --no-index --find-links /bare/packages "$(echo /bare/packages/jumpout_export-*.whl)[demo]"'
inside /env/bin/python /bare/one_openmp.py
inside /env/bin/jumpout-export demo --out /bare/demo --epochs 2 | tail -3
if [ -x "$replay" ]; then
  cp "$replay" "$root/bare/jumpout-replay"
  # ONNX Runtime is its wheel's, which has it under its full version alone.
  inside sh -c 'ln -s /env/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.1.* /bare/libonnxruntime.so.1'
  inside LD_LIBRARY_PATH=/bare /bare/jumpout-replay /bare/demo/model.onnx
else
  echo "replay: not run, there is no $replay"
fi
echo "bare: ok"
