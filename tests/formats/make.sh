#!/usr/bin/env bash
# Writes the checkpoints of every format to build/formats, in the environment
# that tests/run.sh makes.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=build/venv/bin/python
if ! [ -x $python ]; then
  echo "no $python: run tests/run.sh once, it makes the environment" >&2
  exit 1
fi
export PYTHONDONTWRITEBYTECODE=1
exec $python tests/formats/make_checkpoints.py build/formats
