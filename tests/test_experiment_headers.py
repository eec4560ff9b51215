"""The commands at the head of each experiment file work, in their order, with nothing done before."""

import newcomer
import pytest
from documents import EXPERIMENTS

STEPS, NAMES = newcomer.numbered(EXPERIMENTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A newcomer's folder, which the experiments share: a run that two of them train is trained once."""
    folder = tmp_path_factory.mktemp("newcomer")
    newcomer.make(folder)
    return folder


@pytest.mark.e2e
@pytest.mark.parametrize("step", [step for _, _, step in STEPS], ids=NAMES)
def test_a_step_works_after_those_before_it(step, folder, monkeypatch):
    with newcomer.living_in(folder, monkeypatch):
        newcomer.follow(step)
