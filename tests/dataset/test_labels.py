"""Label lists, and the classes of mirrored clips."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssv2rt.core.errors import UserError
from ssv2rt.dataset.labels import NO_MIRROR, class_of_template, mirrored_labels, read_labels
from ssv2rt.dataset.scenes import PAIRS
from tests.conftest import REAL

needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no SSv2 label list on this machine")


@needs_real
def test_the_official_list_has_exactly_three_mirrored_pairs() -> None:
    names = read_labels(REAL / "ssv2" / "labels.json")
    mirrored = mirrored_labels(names)
    assert len(names) == 174
    moved = {(a, int(b)) for a, b in enumerate(mirrored) if b not in (a, NO_MIRROR)}
    assert moved == {(86, 87), (87, 86), (93, 94), (94, 93), (166, 167), (167, 166)}


@needs_real
def test_synthetic_classes_are_ssv2_classes() -> None:
    names = read_labels(REAL / "ssv2" / "labels.json")
    assert {name for pair in PAIRS for name in pair} <= set(names)


def test_class_without_a_mirrored_counterpart_is_not_mirrored() -> None:
    assert mirrored_labels(["Poking a hole", "Turning left", "Lifting upright", "Leftover"]).tolist() == [
        0,
        NO_MIRROR,
        2,
        3,
    ]


words = st.lists(st.sampled_from(["left", "Right", "up", "thing", "bright", "to"]), min_size=1, max_size=5)


@given(st.lists(words.map(" ".join), unique_by=str.lower, max_size=12))
def test_mirroring_twice_changes_nothing(names: list[str]) -> None:
    mirrored = mirrored_labels(names)
    allowed = np.flatnonzero(mirrored != NO_MIRROR)
    assert (mirrored[mirrored[allowed]] == allowed).all()


def test_templates_lose_their_brackets() -> None:
    assert class_of_template("Covering [something] with [something]") == "Covering something with something"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1, 2]", "not SSv2's label list"),
        ("{}", "not SSv2's label list"),
        ('{"a": "x"}', "needs a whole number"),
        ('{"a": "0", "b": "2"}', "must be 0 to 1"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON"),
        ('{"a": Infinity}', "needs a whole number"),
    ],
)
def test_malformed_label_list_is_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(UserError, match=says):
        read_labels(tmp_path / "labels.json")


@pytest.mark.parametrize(
    "pair",
    ["push_left push_right", "PushLeft PushRight", "left1 right1", "to-leftwards to-rightwards", "LEFT RIGHT"],
)
def test_sides_are_found_in_folder_names(pair: str) -> None:
    assert mirrored_labels(pair.split()).tolist() == [1, 0]


def test_words_that_contain_left_or_right_are_not_sides() -> None:
    assert mirrored_labels(["upright", "bright light", "leftover", "Copyright"]).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "content", ['{"a": "0", "\\ud800": "1"}', '{"a": 0.5}', '{"a": true}', '{"a": null}', '{"a": ["0"]}']
)
def test_labels_that_are_no_text_and_numbers_that_are_not_whole_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(UserError, match="is no Unicode text|every label needs a whole number"):
        read_labels(path)
