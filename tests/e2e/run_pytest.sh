#!/usr/bin/env bash
# Runs one file of this folder in the environment that tests/run.sh makes.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=build/venv/bin/python
if ! [ -x $python ]; then
  echo "no $python: run tests/run.sh once, it makes the environment" >&2
  exit 1
fi
export PYTHONDONTWRITEBYTECODE=1
exec $python -m pytest -q -p no:cacheprovider -c tests/e2e/pytest.ini \
  --rootdir=tests/e2e "tests/e2e/$1" "${@:2}"
