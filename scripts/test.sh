#!/usr/bin/env bash
# Lint, types and tests, in an environment that it makes by itself. Arguments go to pytest: ./scripts/test.sh -m slow
# Two files of tests run at the same time; -n 0 after that runs one, as a GPU wants it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
install_into_venv "[dev]"
ruff check .
ruff format --check .
mypy
pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
