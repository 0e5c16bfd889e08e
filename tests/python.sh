#!/usr/bin/env bash
# Runs Python in the environment that tests/run.sh makes.
set -euo pipefail
python=$(dirname "$0")/../build/venv/bin/python
if ! [ -x "$python" ]; then
  echo "no build/venv/bin/python: run tests/run.sh once, it makes the environment" >&2
  exit 1
fi
export PYTHONDONTWRITEBYTECODE=1
exec "$python" "$@"
