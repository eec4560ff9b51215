"""What a run's folder says, read again."""

import contextlib
import json

import numpy as np
import pytest
from tiny import EXPERIMENTS

from cfgjax import processes
from cfgjax.commands.sample import rows
from cfgjax.config import check_resumable, load_file, to_json
from cfgjax.errors import UsageError, printable
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


@pytest.mark.parametrize("names", [("0", "1", "10", "2"), ("caf\udce9", "new\nline", "kafé", "a")])
def test_a_run_records_the_names_of_its_classes_and_rows_of_samples_have_them(tmp_path, names):
    config = load_file(EXPERIMENTS / "cifar10.py")
    with contextlib.closing(Claim(tmp_path, config, "a" * 64, names)) as claim:
        claim.write_config()
    told = rows(tmp_path, [2, 0], 4)
    assert told == f"2 {printable(names[2])}, 0 {printable(names[0])}" and told.isprintable()
    assert rows(tmp_path, [2, 0], 5) == "2, 0"  # those of another set


@pytest.mark.parametrize("content", [None, {"hash": "a" * 64}, {"classes": 7}])
def test_rows_of_runs_that_recorded_no_names_have_labels_alone(tmp_path, content):
    if content is not None:
        (tmp_path / "data.json").write_text(json.dumps(content))
    assert rows(tmp_path, range(3), 3) == "0, 1, 2"
    assert rows(tmp_path, range(1000), 1000).endswith("…, 999")
