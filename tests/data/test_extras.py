"""What is not installed is told with the extra that has it."""

import sys

import pytest
from tiny import open_source

from cfgjax.base.errors import UsageError
from cfgjax.data.pipeline import grain_and_flags


@pytest.mark.parametrize(
    ("module", "extra", "use"),
    [
        ("array_record.python", "data", lambda **data: open_source(source="prepared", path="none", **data)),
        ("tensorflow_datasets", "tfds", lambda **data: open_source(source="tfds", path="none", **data)),
        ("grain", "data", lambda **data: grain_and_flags()),
    ],
)
def test_a_missing_library_is_reported_with_its_extra(module, extra, use, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"pip install 'cfgjax\[{extra}\]'"):
        use(num_classes=2, image_shape=(8, 8, 3))
