#!/usr/bin/env bash
# install_test.sh CMAKE BUILD_DIR VERSION: installs into a new folder and runs
# what lies there.
set -euo pipefail
prefix=$(mktemp -d)
trap 'rm -rf "$prefix"' EXIT
"$1" --install "$2" --prefix "$prefix" >"$prefix/log" || { cat "$prefix/log"; exit 1; }
for program in conclave conclave-worker; do
  version=$("$prefix/bin/$program" --version)
  [[ $version == *"$3"* ]] || { echo "$program --version: $version"; exit 1; }
  help=$("$prefix/bin/$program" --help)
  [[ $help == *[Uu]sage* ]] || { echo "$program --help has no usage"; exit 1; }
done
for file in config/two-workers.yaml proto/conclave/v1/config.proto; do
  [ -s "$prefix/share/conclave/$file" ] || { echo "not installed: $file"; exit 1; }
done
