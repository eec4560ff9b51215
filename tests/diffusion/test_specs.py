"""Laws of the textual form of rules and samplers."""

import dataclasses
import math
import random
from typing import Any

import pytest

from cfgjax.diffusion.guidance import RULES, cfg, classifier, conditional
from cfgjax.diffusion.samplers import SAMPLERS, ancestral, ddim
from cfgjax.diffusion.specs import Spec, parse, spec


@dataclasses.dataclass(frozen=True, repr=False)
class leaf(Spec):
    number: Any = 0.5
    word: Any = "plain"


@dataclasses.dataclass(frozen=True, repr=False)
class wrap(Spec):
    rule: Any
    low: Any = 0
    high: Any = math.inf
    pairs: Any = None


@dataclasses.dataclass(frozen=True, repr=False)
class product(Spec):
    rule: Any = leaf()
    other: Any = leaf(number=2)


NAMES = {"leaf": leaf, "wrap": wrap, "product": product}
NUMBERS = (0, 0.0, -0.0, 0.5, 1, 1.0, -3, 1e-30, 1e15, 10**15, 1e16, 10**16 + 1, 2**70, 1e300, 0.1 + 0.2, math.inf)


def drawn(rng, depth):
    """A random value."""
    number = lambda: rng.choice([*NUMBERS, rng.uniform(-1e3, 1e3), rng.randrange(-99, 99), -math.inf])
    if depth == 0 or rng.random() < 0.3:
        return leaf(number(), rng.choice(["plain", "", "it's", 'a "b"\n(c)', "cfg()", None, True, (), (1.5,)]))
    if rng.random() < 0.5:
        pairs = rng.choice([None, tuple((number(), number()) for _ in range(rng.randrange(3)))])
        return wrap(drawn(rng, depth - 1), low=number(), high=number(), pairs=pairs)
    return product(drawn(rng, depth - 1), drawn(rng, depth - 1))


def test_text_is_parsed_back_to_its_value_and_equal_values_have_equal_text():
    rng = random.Random(0)
    values = [drawn(rng, depth=3) for _ in range(1000)]
    for value in values:
        assert parse(repr(value), NAMES) == value, value
        assert "\n" not in repr(value)
    for a, b in zip(values, rng.sample(values, len(values)), strict=True):
        assert (a == b) == (repr(a) == repr(b))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("other", NUMBERS)
def test_equal_numbers_have_equal_text(number, other):
    assert (spec(number) == spec(other)) == (number == other)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("cfg()", cfg()),
        ("cfg", cfg()),
        (" classifier( conditional(), scale = 2 ,form='z')\n", classifier(conditional(), scale=2.0, form="z")),
        ("classifier(rule=conditional())", classifier(conditional())),
        ("classifier(scale=-1e0)", classifier(scale=-1)),
    ],
)
def test_rules_are_read_from_text(text, value):
    assert parse(text, RULES) == value


def test_text_omits_defaults_and_the_name_of_the_wrapped_rule():
    assert repr(classifier(cfg(), 1.0, "eps")) == "classifier()"
    assert repr(classifier(conditional(), 2.0, "mean")) == "classifier(conditional(), scale=2, form='mean')"
    assert [repr(value) for value in (ddim(0), ddim(eta=0.5), ancestral(), ancestral(1.0))] == [
        "ddim()", "ddim(eta=0.5)", "ancestral()", "ancestral(v=1)"
    ]  # fmt: skip


@pytest.mark.parametrize("registry", [RULES, SAMPLERS])
def test_every_registered_value_has_its_name_as_text(registry):
    for name, make in registry.items():
        assert repr(make()) == f"{name}()"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ddmi()", "unknown rule 'ddmi', did you mean 'ddim'"),
        ("ddim(et=1)", "ddim takes no 'et', did you mean 'eta'"),
        ("classifier(guide=1)", "classifier takes no 'guide'"),
        ("ddim(0.5)", "'0.5' is given without a name; its arguments are eta=…"),
        ("classifier(cfg(), 2.0)", "'2.0' is given without a name; its arguments are scale=…, form=…"),
        ("classifier('cfg()')", "is given without a name"),
        ("classifier(2.0)", "'2.0' is given without a name"),
        ("classifier(inf)", "'inf' is given without a name"),
        ("classifier(print('x'))", "unknown rule 'print'"),
        ("classifier(scale=__import__('os'))", "unknown rule '__import__'"),
        ("ddim(eta='1/0')", "ddim: eta is '1/0'; need a number in"),
        ("ddim(eta=1/2)", "ddim: eta is '1 / 2'; need a number, a string"),
        ("ddim(eta=[1])", r"ddim: eta is '\[1\]'; need a number, a string"),
        ("ddim(eta=True)", "eta is True"),
        ("ddim(eta=None)", "eta is None"),
        ("ddim(eta=1.5)", "eta is 1.5"),
        ("ddim(eta=inf)", "eta is inf"),
        ("ddim(eta=1j)", "eta is '1j'"),
        ("ddim(eta=nan)", "eta is nan; need a number"),
        ("ddim(eta=-'a')", "eta is"),
        ("ancestral(v=cfg())", "v is cfg"),
        ("ddim(eta=0, eta=0)", "eta is given twice"),
        ("ddim(*a)", "without a name"),
        ("ddim(**a)", "is not understood"),
        ("classifier(cfg(), rule=cfg())", "rule is given twice"),
        ("classifier(form='mena')", "form is 'mena', did you mean 'mean'"),
        ("os.system('x')", "is no name of a rule"),
        ("cfg()()", "is no name of a rule"),
        ("lambda: 1", "is no call such as"),
        ("1", "is no call such as"),
        ("", "is no call such as"),
        ("cfg(", "is no call such as"),
        ("cfg();cfg()", "is no call such as"),
        ("a\0b", "is no call such as"),
        ("(" * 5000, "is no call such as"),
        ("classifier(" * 3000 + ")" * 3000, "classifier"),
    ],
)
def test_any_other_text_is_a_one_line_error(text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse(text, RULES | SAMPLERS)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_an_argument_without_a_default_is_required():
    with pytest.raises(ValueError, match="wrap needs rule"):
        parse("wrap(low=1)", NAMES)
