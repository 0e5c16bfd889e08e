#!/usr/bin/env bash
# install_test.sh CMAKE BUILD_DIR VERSION: installs into a new folder and runs
# what lies there.
set -euo pipefail
prefix=$(mktemp -d)
trap 'rm -rf "$prefix"' EXIT
"$1" --install "$2" --prefix "$prefix" >"$prefix/log" || { cat "$prefix/log"; exit 1; }
for program in conclave conclave-worker; do
  "$prefix/bin/$program" --version | grep -F "$3"
  "$prefix/bin/$program" --help | grep -qi 'usage'
done
for file in config/two-workers.yaml proto/conclave/v1/config.proto; do
  [ -s "$prefix/share/conclave/$file" ] || { echo "not installed: $file"; exit 1; }
done
