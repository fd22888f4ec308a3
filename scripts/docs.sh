#!/usr/bin/env bash
# Makes the documentation as a site in docs/_build/html, in the environment of the tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
install_into_venv "[docs]"
sphinx-build --fail-on-warning --keep-going -q docs docs/_build/html
echo "docs/_build/html/index.html"
