"""What the card of an exported model says that the model is."""

import re

import pytest

import cfgjax
from cfgjax.convert.model_card import introduction
from cfgjax.runs.settings import Settings


@pytest.mark.parametrize(
    ("experiment", "changes", "said"),
    [
        ("digits", {}, "A class-conditional diffusion model .* dropped with probability 0.1 .* guided without a"),
        ("digits_adm", {}, "A class-conditional .* trained without dropped labels, and has no unconditional branch"),
        ("digits_adm", {"model": {"conditional": False}}, "An unconditional diffusion model .* takes no labels"),
    ],
)
def test_the_card_says_which_predictions_a_model_has(experiment, changes, said):
    settings = Settings.from_config(cfgjax.config(experiment, **changes))
    assert re.search(said, introduction(settings))
