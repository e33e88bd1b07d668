#!/usr/bin/env bash
# Prints a folder with ONNX Runtime's C++ headers, which no wheel has. Where the system has none, Debian's
# libonnxruntime-dev is fetched from the mirror that apt is set up for and unpacked in build/; nothing is installed.
# Exit code 3: they cannot be had here. ONNX Runtime keeps old interfaces, so these serve every later library.
set -euo pipefail
cd "$(dirname "$0")/.."
suite=trixie
version='1.21.*'
work=$PWD/build/onnxruntime-headers
unpacked=$work/usr/include/onnxruntime

give_up() {
  echo "no ONNX Runtime headers: $1; install libonnxruntime-dev (Debian 13 and later) or unpack a release and" \
    "configure with -DONNXRUNTIME_ROOT=DIR" >&2
  exit 3
}

for folder in "$unpacked" /usr/include/onnxruntime /usr/local/include/onnxruntime /usr/local/include; do
  if [ -f "$folder/onnxruntime_cxx_api.h" ]; then
    echo "$folder"
    exit
  fi
done
command -v apt-get >/dev/null || give_up "the system has none, and no apt to fetch them with"
mirrors=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages')
mirror=$(grep -m 1 '/debian/' <<<"$mirrors") || give_up "the system has none, and apt knows no Debian mirror"
for keyring in /usr/share/keyrings/debian-archive-keyring.{pgp,gpg}; do
  [ ! -f "$keyring" ] || break
done
[ -f "$keyring" ] || give_up "the package debian-archive-keyring is missing"

# A list, state and cache of its own: the machine's apt does not see the other release.
mkdir -p "$work/lists/partial" "$work/archives/partial"
echo "deb [signed-by=$keyring] $mirror $suite main" >"$work/sources.list"
apt=(apt-get -q -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
  -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work" -o APT::Sandbox::User=root -o Acquire::http::Timeout=20)
(cd "$work" && "${apt[@]}" update && "${apt[@]}" download "libonnxruntime-dev=$version") >"$work/log" 2>&1 ||
  give_up "fetching libonnxruntime-dev $version of $suite failed ($(tail -n 1 "$work/log"))"
dpkg-deb -x "$work"/libonnxruntime-dev_*.deb "$work"
rm -r "$work/lists"
echo "$unpacked"
