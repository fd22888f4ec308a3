"""Names of classes are matched in any order and number."""

import pytest

from ssv2rt.core.class_names import match_classes
from ssv2rt.core.errors import UserError


def test_names_match_in_any_order_and_number() -> None:
    match = match_classes(("c", "x", "a"), ("a", "b", "c"))
    assert match.numbers.tolist() == [2, -1, 0] and match.unknown == ("x",)
    assert match_classes((), ("a",)).numbers.tolist() == [] and not match.spelling_text("the data", "run 'r'")


def test_normalization_and_outer_spaces_do_not_matter_and_are_said() -> None:
    match = match_classes(("Cafe\u0301", " Tea\t", "Tea"), ("Caf\u00e9", "Tea"))
    assert match.numbers.tolist() == [0, 1, 1]
    text = match.spelling_text("'data'", "run 'r'")
    assert text.startswith(
        "class names of 'data' that differ from those of run 'r' only in Unicode normalization or in"
    )
    assert text.endswith(r"the same: 2, such as 'Cafe\u0301' and 'Caf\xe9'")


def test_case_matters_and_the_right_name_is_suggested() -> None:
    match = match_classes(("pushing", "zzz", "q1", "q2"), ("Pulling", "Pushing"))
    assert match.unknown_text() == "'pushing' (did you mean 'Pushing'?), 'zzz', 'q1' and 1 more"


def test_an_equal_name_is_preferred_to_one_that_is_alike() -> None:
    assert match_classes(("Tea ", "Tea"), ("Tea", "Tea ")).numbers.tolist() == [1, 0]


def test_a_name_that_fits_two_classes_is_refused() -> None:
    for classes in (("a", "b", "a"), ("a ", "b", " a")):
        assert match_classes(("b",), classes).numbers.tolist() == [1]
        with pytest.raises(UserError, match="'a' fits the classes 0 and 2 of the network"):
            match_classes(("a",), classes)
