"""What a run's folder says, read again."""

import pytest
from tiny import EXPERIMENTS

from cfgjax.config import check_resumable, load_file, to_json
from cfgjax.workdir import read_config


@pytest.mark.parametrize(("written", "name"), [(False, "none"), (True, "blocks")])
def test_rematerialisation_written_as_true_or_false_is_read_by_name(tmp_path, written, name):
    config = load_file(EXPERIMENTS / "digits.py")
    config.model.remat = name
    now, then = f'"remat": "{name}"', f'"remat": {str(written).lower()}'
    assert now in to_json(config)
    (tmp_path / "config.json").write_text(to_json(config).replace(now, then))
    found = read_config(tmp_path)
    assert found.model.remat == name
    check_resumable(found, config)
