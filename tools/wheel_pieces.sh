#!/usr/bin/env bash
# Wheels in pieces, for a machine that takes files up to a certain size only.
#   tools/wheel_pieces.sh split WHEELS PIECES [MiB]    pieces of at most so many MiB (48), and a checksum of each wheel
#   tools/wheel_pieces.sh join PIECES WHEELS           the wheels again; ends with 1 if one is not what it was
set -euo pipefail
usage="usage: tools/wheel_pieces.sh split WHEELS PIECES [MiB] | join PIECES WHEELS"
[ $# -ge 3 ] || { echo "$usage" >&2; exit 2; }
from=$2 to=$3
mkdir -p "$to"
case $1 in
  split)
    for wheel in "$from"/*.whl; do
      split --bytes "${4:-48}M" --numeric-suffixes --suffix-length 3 "$wheel" "$to/$(basename "$wheel").part"
    done
    (cd "$from" && sha256sum -- *.whl) >"$to/sha256sums"
    ;;
  join)
    for first in "$from"/*.whl.part000; do
      wheel=$(basename "$first" .part000)
      cat "$from/$wheel".part??? >"$to/$wheel"
    done
    (cd "$to" && sha256sum --check --quiet -) <"$from/sha256sums" ||
      { echo "error: the pieces in $from are not whole; copy them again" >&2; exit 1; }
    ;;
  *)
    echo "$usage" >&2
    exit 2
    ;;
esac
