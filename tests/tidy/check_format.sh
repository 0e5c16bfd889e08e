#!/usr/bin/env bash
# Fails when a source file is not as clang-format writes it. Only version 14
# (Debian 12) is authoritative: others differ in details.
set -euo pipefail
format=$1
"$format" --version | grep -q 'version 14\.' || { echo "clang-format is not 14: not checked"; exit 0; }
find common kernels worker coordinator tests -name '*.h' -o -name '*.cc' \
  -o -name '*.cu' -o -name '*.cuh' | sort | xargs "$format" --dry-run -Werror
