"""Code, recipes and documentation have American spelling."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BRITISH = re.compile(
    r"\w*(?:colour|neighbour|behaviour|favour|centre|grey|labell|modell|cancell|artefact"
    r"|(?:normal|optim|synchron|recogn|initial|quant|serial|summar|synthes|factor|organ|minim|maxim|parallel)is(?:e|ing|ation))"
    r"\w*",
    re.IGNORECASE,
)
STORED = {"normalise", "optimiser", "centre", "was_cancelled"}
"""Names in checkpoints, recipes and files of other programs, which have to stay."""


def test_spelling_is_american() -> None:
    texts = [*(path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"), *ROOT.glob("docs/*.md")]
    texts += [*ROOT.glob("docs/how*.svg"), *ROOT.glob("*/*.toml")]
    files = [*texts, *(path for part in ("ssv2rt", "examples", "scripts") for path in (ROOT / part).rglob("*.py"))]
    assert len(files) > 100
    wrong = {
        f"{file.relative_to(ROOT)}: {word}"
        for file in files
        for word in BRITISH.findall(file.read_text(encoding="utf-8"))
        if word not in STORED
    }
    assert not wrong
