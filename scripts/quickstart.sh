#!/usr/bin/env bash
# From nothing to predictions: installs, trains on synthetic clips, builds an engine, scores the held-out clips.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
install_into_venv ""

echo "+ ssv2rt train"
ssv2rt train
echo "+ ssv2rt build-engine --fp16"
ssv2rt build-engine --fp16
echo "+ ssv2rt score videos/ --out preds.csv --annotations videos/test-answers.csv"
ssv2rt score videos/ --out preds.csv --annotations videos/test-answers.csv --overwrite

head -n 6 preds.csv | cut -d, -f1-3,5-6
