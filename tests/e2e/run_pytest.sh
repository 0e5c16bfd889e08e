#!/usr/bin/env bash
# Runs one file of this folder in the environment that tests/run.sh makes.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec tests/python.sh -m pytest -q -p no:cacheprovider -c tests/e2e/pytest.ini \
  --rootdir=tests/e2e "tests/e2e/$1" "${@:2}"
