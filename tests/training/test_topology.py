"""A run goes on elsewhere: on more devices, on fewer, with its parameters split."""

import numpy as np
import pytest
from runs import metrics, train
from tiny import mixture_config

pytestmark = pytest.mark.slow


def config(data, fsdp):
    return mixture_config(**{"mesh.data": data, "mesh.fsdp": fsdp, "model.width": 128, "train.num_steps": 40})


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight") / "run"
    train(config(1, 1), workdir)
    return metrics(workdir)


@pytest.mark.parametrize(
    "places",
    [[(1, 1, 1), (8, 1, 8)], [(8, 1, 8), (2, 4, 8), (1, 1, 1)], [(2, 4, 8), (1, 2, 2)]],
    ids=lambda places: " → ".join(f"data {d} fsdp {f}" for d, f, _ in places),
)
def test_a_resumed_run_sees_the_data_and_noise_of_an_uninterrupted_one(straight, tmp_path, places):
    for i, (data, fsdp, devices) in enumerate(places):
        last = i == len(places) - 1
        train(config(data, fsdp), tmp_path, () if last else (12,), ends=last, devices=devices)
    found = metrics(tmp_path)
    assert [line["step"] for line in found] == [line["step"] for line in straight]
    for a, b in zip(found, straight, strict=True):
        assert a["drop_rate"] == b["drop_rate"]
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=2e-6)
