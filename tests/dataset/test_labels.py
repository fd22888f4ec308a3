"""Label lists, and the classes of mirrored clips."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ssv2rt.core.errors import UserError
from ssv2rt.dataset.labels import (
    NO_MIRROR,
    class_of_template,
    flips_in_words,
    mirrored_labels,
    read_class_names,
    read_labels,
)
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


words = st.lists(
    st.sampled_from(["left", "Right", "up", "ccw", "clockwise", "bright", "L", "R"]), min_size=1, max_size=5
)


@given(st.lists(words.map(" ".join), unique_by=str.lower, max_size=12))
@example(["L L", "L R", "R L"])
@example(["cw L", "cw R", "ccw L"])
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


@pytest.mark.parametrize(
    "pair",
    [
        "Turning it clockwise/Turning it counter-clockwise",
        "turn_clockwise/turn_anticlockwise",
        "TurnClockwise/TurnCounterClockwise",
        "CLOCKWISE/COUNTERCLOCKWISE",
        "rotate_cw/rotate_ccw",
        "counter clockwise/clockwise",
        "left hand clockwise/right hand counterclockwise",
        "left_hand/right_hand",
        "turn_L/turn_R",
        "L-turn fast/R-turn fast",
    ],
)
def test_rotations_and_lone_letters_are_sides(pair: str) -> None:
    assert mirrored_labels([*pair.split("/"), "still"]).tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    "names",
    [
        "L/R/S",  # the whole name: letters of a sign alphabet
        "letter_K/letter_L/letter_R",
        "size_L/size_M",
        "turn_l/turn_r",
        "Clockwork/unclockwise thing",
        "acw/bccw",
    ],
)
def test_other_letters_and_words_are_no_sides(names: str) -> None:
    classes = names.split("/")
    assert mirrored_labels(classes).tolist() == list(range(len(classes)))


def test_a_rotation_without_its_opposite_is_not_mirrored() -> None:
    assert mirrored_labels(["Spinning clockwise", "left clockwise", "right clockwise"]).tolist() == [NO_MIRROR] * 3


def test_flips_are_told_in_one_line() -> None:
    text = flips_in_words(["swipe left", "swipe right", "spin clockwise", "wave"])
    assert "swap the labels 'swipe left' and 'swipe right'; other classes keep theirs" in text
    assert "never flipped, as the other side is no class: 'spin clockwise' (augment.flip = never" in text
    many = [f"{side} {number}" for number in range(20) for side in ("left", "right")]
    assert "'left 9' and 'right 9' and 10 more;" in flips_in_words(many)
    assert "keep every label, as no two classes" in flips_in_words(["a", "b"])


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


NAMES = ("b c", "a", "d")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    "text",
    [
        "b c\na\r\n\n  d \n",
        json.dumps(NAMES),
        json.dumps({"a": "1", "b c": "0", "d": "2"}),
        json.dumps({"a": 1, "b c": 0, "d": 2}),
        json.dumps({"2": "d", "0": "b c", "1": "a"}),
        json.dumps({"id2label": {"0": "b c", "1": "a", "2": "d"}}),
        json.dumps({"label2id": {"b c": 0, "a": 1, "d": 2}}),
        json.dumps({"model_type": "vit", "id2label": dict(enumerate(NAMES)), "label2id": {"b c": 0, "a": 1, "d": 2}}),
    ],
)
def test_class_names_are_read_as_other_programs_write_them(tmp_path: Path, text: str, mark: str) -> None:
    (tmp_path / "names").write_bytes((mark + text).encode())
    assert read_class_names(tmp_path / "names") == NAMES


def test_names_that_are_numbers_are_read_where_that_is_clear(tmp_path: Path) -> None:
    file = tmp_path / "names"
    for text, names in (
        ("3\n4\n", ("3", "4")),
        ("7\n", ("7",)),
        (json.dumps({"0": "1", "1": "0"}), ("1", "0")),  # the same in both readings
        (json.dumps({"0": "7", "1": "3"}), ("7", "3")),
    ):
        file.write_text(text)
        assert read_class_names(file) == names
    file.write_text(json.dumps({"0": "1", "1": "2", "2": "0"}))
    with pytest.raises(UserError, match="the names are numbers, too, and it does not say which are which"):
        read_class_names(file)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a\nb\na\n", "names the class 'a' twice"),
        (b'["a", "a"]', "names the class 'a' twice"),
        (b'{"0": "a", "1": "a"}', "names the class 'a' twice"),
        (b'{"a": "0", "a": "1"}', "has the key 'a' twice"),
        (b"", "names no class"),
        (b"[]", "names no class"),
        (b"[1, 2]", "a list of labels holds nothing but names"),
        (b'{"0": "a", "2": "b"}', "with the numbers 0 to 1, each once"),
        (b'{"a": "0", "b"', "not JSON, although it begins like it"),
        (b'{"id2label": {"0": "a", "1": "b"}, "label2id": {"b": 0, "a": 1}}', "'id2label' and 'label2id' disagree"),
        ("Füße\n".encode("latin-1"), "it is not UTF-8 text"),
    ],
)
def test_unsuitable_class_names_are_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "names").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_class_names(tmp_path / "names")
    assert says in str(error.value) and "\n" not in str(error.value)
