"""How many videos of a predictions file have the right label first: share_right.py preds.csv test-answers.csv"""

from __future__ import annotations

import csv
import sys
from pathlib import Path


def main(predictions: str, answers: str) -> None:
    with open(answers, encoding="utf-8", newline="") as file:
        truth = dict(csv.reader(file, delimiter=";"))
    with open(predictions, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if Path(row["video"]).stem in truth]
    right = sum(row["label"] == truth[Path(row["video"]).stem] for row in rows)
    print(f"{right} of {len(rows)} videos have the right label first: {100 * right / max(1, len(rows)):.1f}%")


if __name__ == "__main__":
    main(*sys.argv[1:])
