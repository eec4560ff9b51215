"""Labels by the names of their classes."""

import pytest

from cfgjax.base.errors import UsageError
from cfgjax.models.class_names import label_of, short_name

CLASSES = ["tench, Tinca tinca", "Great White Shark", "crane", "crane", "7", "a class with a long name"]


@pytest.mark.parametrize(
    ("word", "label"),
    [("tench", 0), ("Tinca tinca", 0), ("great white shark", 1), ("7", 4), ("1", 1), (" tench ", 0)],
)
def test_a_name_a_synonym_or_a_number_is_a_label(word, label):
    assert label_of(word, CLASSES) == label


@pytest.mark.parametrize(
    ("word", "classes", "told"),
    [
        ("crane", CLASSES, "class 'crane' is the name of several labels: 2, 3; give a number"),
        ("tensh", CLASSES, "there is no class 'tensh', did you mean 'tench'?"),
        ("zebra", CLASSES[:1], "there is no class 'zebra'; known: tench, Tinca tinca"),
        ("zebra", [f"n{i}" for i in range(99)], "there is no class 'zebra'; the classes are n0, n1, n2, … n98"),
        ("cat", None, "label 'cat' is not a number, and the run recorded no class names: give a number"),
    ],
)
def test_names_that_are_ambiguous_or_unknown_are_one_line(word, classes, told):
    with pytest.raises(UsageError) as raised:
        label_of(word, classes)
    assert str(raised.value) == told


def test_pictures_have_short_names():
    assert [short_name(i, CLASSES) for i in (0, 2, 5)] == ["tench", "crane", "a class with a …"]
    assert short_name(3, None) == "3"
