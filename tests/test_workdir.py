"""What a run's folder says, read again."""

import numpy as np
import pytest
from tiny import EXPERIMENTS

from cfgjax import processes
from cfgjax.config import check_resumable, load_file, to_json
from cfgjax.errors import UsageError
from cfgjax.workdir import Claim, read_config


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


def test_a_process_that_sees_another_data_set_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "allgather", lambda told, what: [told, told | {"data": np.array("b" * 64)}])
    with pytest.raises(UsageError, match="process 1 has .* b{16} at data/cifar10, process 0 the one with hash a{16};"):
        Claim(tmp_path, load_file(EXPERIMENTS / "cifar10.py"), "a" * 64)
