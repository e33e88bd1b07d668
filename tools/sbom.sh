#!/usr/bin/env bash
# Writes what an installation of the wheel consists of, with versions and licenses, as CycloneDX JSON:
# tools/sbom.sh WHEELS OUT.json
set -euo pipefail
[ $# = 2 ] || { echo "usage: tools/sbom.sh WHEELS OUT.json" >&2; exit 2; }
project=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --find-links "$1" -c "$project/constraints.txt" "jumpout-export[onnx,report,data]"
"$work/env/bin/python" -m pip uninstall --quiet --yes pip setuptools  # tools of the environment, not of the package
"$python" -m venv "$work/tool"
"$work/tool/bin/python" -m pip install --quiet -c "$project/constraints.txt" cyclonedx-bom
"$work/tool/bin/cyclonedx-py" environment --output-reproducible --pyproject "$project/pyproject.toml" --output-file "$2" "$work/env/bin/python"
