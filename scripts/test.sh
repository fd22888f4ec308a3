#!/usr/bin/env bash
# Lint, types and tests, in an environment that it makes by itself. Arguments go to pytest: ./scripts/test.sh -m slow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
install_into_venv "[dev]"
ruff check .
ruff format --check .
mypy
pytest "$@"
