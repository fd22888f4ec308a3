"""The findings of all sections as JSON, as Markdown, and in a few lines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

NAME = "gpu_check"


def write(folder: Path, report: dict[str, Any]) -> None:
    """Writes gpu_check.json and gpu_check.md, each whole or not at all."""
    texts = {".json": json.dumps(report, indent=1, ensure_ascii=False) + "\n", ".md": markdown(report)}
    for suffix, text in texts.items():
        temporary = folder / f".{NAME}{suffix}.partial"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, folder / f"{NAME}{suffix}")


def markdown(report: dict[str, Any]) -> str:
    """A summary, and a section with its tables for each section."""
    rows = ["# GPU check", "", f"`{report['command']}`, {report['began']}, {report['seconds']:.0f} s", ""]
    rows += table([summary_row(name, found) for name, found in report["sections"].items()])
    failures = [f"{name}: {text}" for name, found in report["sections"].items() for text in found["failures"]]
    if failures:
        rows += ["", "Failed:", "", *(f"- {_cell(text)}" for text in failures)]
    for name, found in report["sections"].items():
        rows += ["", f"## {name}: {found['title']}", *_section(found)]
    return "\n".join(rows) + "\n"


def summary_row(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """A section in one row."""
    held = sum(check["passed"] for check in found["checks"])
    left = [part for part, state in found["parts"].items() if state["status"] == "left out"]
    return {
        "section": name,
        "status": found["status"],
        "seconds": round(found["seconds"], 1),
        "checks": f"{held} of {len(found['checks'])}",
        "missing": ", ".join(dict.fromkeys(m["what"] for m in found["missing"])),
        "left out": ", ".join(left),
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table; the columns are all keys, in the order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(_cell(column) for column in columns) + " |"]
    numbers = [all(isinstance(row.get(c), (int, float, type(None))) for row in rows) for c in columns]
    lines.append("|" + "|".join("---:" if number else "---" for number in numbers) + "|")
    lines += ["| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |" for row in rows]
    return lines


def _section(found: dict[str, Any]) -> list[str]:
    rows: list[str] = []
    parts = [
        {
            "part": name,
            "status": state["status"],
            "seconds": round(state["seconds"], 1),
            "error": state.get("error", ""),
        }
        for name, state in found["parts"].items()
    ]
    rows += ["", *table(parts)] if parts else []
    if found["facts"]:
        rows += ["", *table([{"what": name, "found": value} for name, value in found["facts"].items()])]
    for title, lines in found["tables"].items():
        rows += ["", f"**{title}**", "", *table(lines)]
    if found["checks"]:
        wrong = [
            {"part": c["part"], "not so": c["what"], "found": c["found"]} for c in found["checks"] if not c["passed"]
        ]
        rows += ["", f"{len(found['checks']) - len(wrong)} of {len(found['checks'])} checks hold."]
        rows += ["", *table(wrong)] if wrong else []
    if found["missing"]:
        rows += ["", "**missing**", "", *table(found["missing"])]
    rows += ["", *(f"- {_cell(note)}" for note in found["notes"])] if found["notes"] else []
    return rows


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    return " ".join(str("" if value is None else value).replace("|", "\\|").split())
