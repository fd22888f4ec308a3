"""Messages, facts and progress never bring raw control characters to the terminal."""

import pytest

from ssv2rt.commands.output import print_facts
from ssv2rt.core import progress as module
from ssv2rt.core.log import printable
from ssv2rt.core.progress import Progress

NAME = "layer\x1b[2J[red]\n\udcff\x07"
"""An ESC sequence, rich's markup, a line break, a byte that is no UTF-8, and a bell."""
SHOWN = "layer\\x1b[2J[red] \\udcff\\x07"


def test_printable_keeps_text_and_escapes_the_rest() -> None:
    assert printable(NAME) == SHOWN
    assert printable("Größe 日本 [x]") == "Größe 日本 [x]"


def test_facts_and_progress_are_printable(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    print_facts({"kept in float": NAME}, as_json=False)
    monkeypatch.setattr(module, "FIRST_LINE", -1.0)
    with Progress("sensitivity", 2) as progress:
        progress.add(1, now=NAME)
    said = capsys.readouterr()
    assert said.out == f"kept in float  {SHOWN}\n"
    assert SHOWN in said.err and "\x1b" not in said.err
