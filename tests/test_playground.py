"""The playground, docs/playground/index.html: its numbers are those of cfgjax, and it needs nothing from elsewhere.

Chromium loads the page once, with the script tests/playground.js, which adds its results to the document.
"""

import contextlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.grids import GRIDS
from cfgjax.diffusion.guidance import RULES, at_zero, autoguidance, bind_rule, evaluations, mapped, on_grid, on_labels
from cfgjax.diffusion.levels import Continuous
from cfgjax.diffusion.mixture import GaussianMixture
from cfgjax.diffusion.samplers import SAMPLERS, evaluated_levels, initial_noise, noise_at, sample
from cfgjax.diffusion.specs import parse
from cfgjax.models.binding import check_together

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "playground"
PROBE = Path(__file__).parent / "playground.js"
MAX_BYTES = 150_000
FLAGS = (
    *("--headless", "--no-sandbox", "--no-first-run", "--disable-gpu", "--disable-quic", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    "--allow-file-access-from-files",  # without it, errors have no message
)
COUNT, LEVELS = 16, Continuous("cosine", -12.0, 12.0)
TOLERANCE = 1e-6

SETTINGS = (  # permalinks; every rule, sampler, grid and mixture is in one of them
    "steps=12",
    "w=3&rule=conditional&sampler=ddim&ddim_eta=0.5&steps=9&grid=uniform",
    "w=2&rule=ramp&shape=linear&sampler=heun&steps=10&mixture=overlapping",
    "w=2.5&rule=ramp&sampler=unipc&steps=12&grid=flow&shift=3&limited=true&low=0.2&high=5&label=2",
    "w=4&rule=apg&apg_eta=0.2&sampler=dpmpp_2m_sde&sde_eta=0.6&steps=12&grid=schedule&mixture=ring&label=3",
    "rule=cfg_plus_plus&g=0.3&sampler=unipc&steps=10&mixture=rare&label=1",
    "rule=cfg_plus_plus&g=0.4&sampler=ddim&steps=11&limited=true&low=0.5",
    "rule=cfg_zero&zero_steps=2&sampler=dpmpp_2m&steps=10&grid=flow",
    "rule=negative&negative=2&label=1&sampler=ancestral&v=0.3&steps=14&grid=schedule",
    "rule=autoguidance&blur=0.5&w=2&sampler=unipc&steps=9&rho=5&limited=true&low=0.1&high=9",
    "w=0&sampler=heun&steps=8&grid=uniform&limited=true",
    "w=-0.5&sampler=dpmpp_2m_sde&steps=10",
    "sampler=ddim&steps=6&grid=uniform",
)
DDIM_CASE, BETWEEN = len(SETTINGS) - 1, 0.123
PREDICTIONS = [(logsnr, label) for logsnr in (-11.5, -2.0, 0.3, 7.0, 12.0) for label in (None, 0, 2)]
TILTED = [("three", 0, 1.5), ("three", 2, -0.7), ("ring", 3, 6.0), ("rare", 1, 3.0), ("overlapping", 0, 0.0)]
MASSES = [0.2, 0.5, 0.9]
POINTS = np.random.default_rng(0).normal(0, 2, (7, 2))

COLLECT_ERRORS = """
const errors = [];
addEventListener("error", (event) => errors.push(event.error?.stack ?? `not loaded: ${event.target.src}`), true);
addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
"""


def keys():
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(np.arange(COUNT))


def noises():
    """N(0, I) [T, N, 2] of cfgjax's steps 0, 1, …, as many as the longest of the settings has."""
    with jax.enable_x64(True):
        steps = [initial_noise(keys(), (2,), np.float64)]
        return np.stack(steps + [noise_at(keys(), step, (2,), np.float64) for step in range(1, 14)])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the page computes and shows."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no program chromium on the PATH")
    folder = tmp_path_factory.mktemp("playground")
    shutil.copytree(FOLDER, folder / "page")
    given = {
        "settings": [{"fragment": fragment, "noise": noises().tolist()} for fragment in SETTINGS],
        "predictions": PREDICTIONS,
        "tilted": TILTED,
        "masses": MASSES,
        "points": POINTS.tolist(),
        "between": BETWEEN,
    }
    page = (FOLDER / "index.html").read_text()
    page = page.replace("<head>", f"<head><script>{COLLECT_ERRORS}</script>", 1)
    page = page.replace("</body>", f"<script>const given = {json.dumps(given)};{PROBE.read_text()}</script></body>", 1)
    (folder / "page" / "test.html").write_text(page)
    off = ("gpu", "quic", "background-networking", "component-update", "sync")
    flags = [
        "--headless",
        "--no-sandbox",
        "--allow-file-access-from-files",
        "--no-first-run",
        *(f"--disable-{name}" for name in off),
    ]
    command = [chromium, *flags, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=60000", "--dump-dom"]
    address = (folder / "page" / "test.html").as_uri()
    done = subprocess.run([*command, f"{address}#{SETTINGS[1]}"], capture_output=True, text=True, timeout=120)
    text = re.search(r'<pre id="outcome">(.*?)</pre>', done.stdout, re.DOTALL)
    assert text, f"no outcome; Chromium says: {done.stderr[-500:]}"
    return json.loads(html.unescape(text[1]))


def mixture_of(components):
    columns = ([part[name] for part in components] for name in ("mean", "std", "weight"))
    return GaussianMixture(*(np.asarray(column, np.float64) for column in columns))


def python_samples(case, components):
    """The samples and the network evaluations of the rule, sampler and grid that the page states as text."""
    weak_components = [part | {"std": float(np.hypot(part["std"], case["blur"]))} for part in components]
    mixture, weak = mixture_of(components), mixture_of(weak_components)
    label, null = (jnp.full(COUNT, k) for k in (case["shared"]["label"], len(components)))
    sampler = parse(case["sampler"], SAMPLERS, "sampler")
    logsnrs = parse(case["grid"], GRIDS, "grid")(LEVELS, len(case["logsnrs"]))
    rule = parse(case["rule"], RULES)
    rule = mapped(rule, lambda part: autoguidance(weak.predict) if isinstance(part, autoguidance) else part)
    rule = on_labels(on_grid(at_zero(rule) if case["w"] == 0 else rule, logsnrs), lambda other: jnp.full(COUNT, other))
    denoise = bind_rule(rule, mixture.predict, label, null, case["w"])
    z = initial_noise(keys(), (2,), np.float64)
    cost = evaluations(rule, evaluated_levels(sampler, logsnrs)).sum()
    return logsnrs, np.asarray(sample(sampler, denoise, keys(), z, logsnrs)), cost


@pytest.mark.e2e
@pytest.mark.parametrize("case", range(len(SETTINGS)), ids=SETTINGS)
def test_samples_are_those_of_python_for_the_same_noise(found, case):
    case = found["samples"][case]
    with jax.enable_x64(True):
        logsnrs, samples, cost = python_samples(case, found["mixtures"][case["shared"]["mixture"]])
    np.testing.assert_allclose(case["logsnrs"], logsnrs, atol=1e-11)
    np.testing.assert_allclose(np.reshape(case["samples"], (-1, 2)), samples, atol=TOLERANCE)
    assert case["evaluations"] == cost


@pytest.mark.e2e
def test_the_settings_above_have_every_choice_of_the_page(found):
    used = {name: set() for name in ("mixture", "rule", "sampler", "grid")}
    for case in found["samples"]:
        used["mixture"].add(case["shared"]["mixture"])
        used["rule"] |= set(re.findall(r"(\w+)\(", case["rule"])) - {"interval"}
        used["sampler"].add(case["sampler"].split("(")[0])
        used["grid"].add(case["grid"].split("(")[0])
    assert used == {name: set(found["choices"][name]) for name in used}


@pytest.mark.e2e
def test_the_line_of_python_states_the_setting(found):
    assert found["samples"][3]["python"] == (
        "model.sample([2], 2.5, rule=\"interval(ramp(shape='cosine'), low=0.2, high=5)\", "
        'sampler="unipc()", grid="flow(shift=3)", num_steps=12)'
    )
    assert "rule=interval(autoguidance(weak=weak), low=0.1, high=9)" in found["samples"][9]["python"]
    assert 'model.sample([1], -0.7, rule="cfg_plus_plus()"' in found["samples"][5]["python"]


@pytest.mark.e2e
def test_the_page_offers_the_samplers_that_cfgjax_accepts_with_a_rule(found):
    model = SimpleNamespace(num_classes=3, has_null_label=True, is_image=False, learned_variance=False)
    for rule, sampler, is_offered in found["pairs"]:
        given = parse(rule, RULES), parse(sampler, SAMPLERS, "sampler"), model
        with contextlib.nullcontext() if is_offered else pytest.raises(UsageError, match="renoise"):
            check_together(*given)


@pytest.mark.e2e
def test_predictions_are_those_of_python(found):
    with jax.enable_x64(True):
        mixture = mixture_of(found["mixtures"]["three"])
        expected = [mixture.predict(jnp.asarray(POINTS), *at)[:2] for at in PREDICTIONS]
    np.testing.assert_allclose(np.reshape(found["predictions"], (-1, 2, 7, 2)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.e2e
def test_moments_of_the_tilted_density_are_those_of_a_wider_and_finer_quadrature(found):
    axis = np.linspace(-10, 10, 301)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    for (name, label, w), case in zip(TILTED, found["tilted"], strict=True):
        with jax.enable_x64(True):
            mixture, points = mixture_of(found["mixtures"][name]), jnp.asarray(grid)
            logs = np.asarray((1 + w) * mixture.log_prob(points, label=label) - w * mixture.log_prob(points))
        share = np.exp(logs - logs.max())
        share /= share.sum()
        mean = share @ grid
        np.testing.assert_allclose(case["mean"], mean, atol=TOLERANCE)
        np.testing.assert_allclose(case["std"], np.sqrt(share @ (grid - mean) ** 2), atol=TOLERANCE)
        inside = [share[logs >= threshold].sum() for threshold in case["thresholds"]]
        np.testing.assert_allclose(inside, MASSES, atol=0.02)


@pytest.mark.e2e
def test_positions_begin_with_the_noise_and_end_with_the_samples(found):
    for case in found["samples"]:
        np.testing.assert_array_equal(case["between"][0], noises()[0].ravel())
        np.testing.assert_array_equal(case["between"][-1], case["samples"])
        np.testing.assert_allclose(case["between"][-2], case["samples"], atol=0.02)


@pytest.mark.e2e
def test_positions_between_levels_are_those_of_a_ddim_step_to_there(found):
    case = found["samples"][DDIM_CASE]
    with jax.enable_x64(True):
        mixture, label = mixture_of(found["mixtures"]["three"]), jnp.full(COUNT, 0)
        denoise = bind_rule(RULES["cfg"](), mixture.predict, label, jnp.full(COUNT, 3), case["w"])
        logsnrs = [logsnr for logsnr in case["logsnrs"] if logsnr < BETWEEN] + [BETWEEN]
        z = initial_noise(keys(), (2,), np.float64)
        _, trajectory = sample(SAMPLERS["ddim"](), denoise, keys(), z, np.asarray(logsnrs), save=lambda at: at.z)
    np.testing.assert_allclose(np.reshape(case["between"][1], (-1, 2)), trajectory[-1], atol=TOLERANCE)


@pytest.mark.e2e
def test_noise_is_standard_normal_and_of_each_sample_alone(found):
    first, fewer, later_step, other_seed = (np.reshape(noise, (-1, 2)) for noise in found["noise"])
    np.testing.assert_array_equal(fewer, first[:7])
    draws = np.concatenate([first, later_step, other_seed], axis=1)
    error = 5 / np.sqrt(len(draws))
    np.testing.assert_allclose(draws.mean(axis=0), 0, atol=error)
    np.testing.assert_allclose(np.cov(draws.T), np.eye(6), atol=2 * error)
    np.testing.assert_allclose((draws[1:] * draws[:-1]).mean(axis=0), 0, atol=error)
    np.testing.assert_allclose((draws**4).mean(axis=0), 3, atol=10 * error)


@pytest.mark.e2e
def test_a_permalink_restores_the_page(found):
    for fragment, case in zip(SETTINGS, found["samples"], strict=True):
        assert set(case["encoded"].split("&")) <= set(fragment.split("&"))
    encoded = [case["encoded"] for case in found["samples"]]
    assert found["initial"] == encoded[1]
    assert found["visited"] == encoded


@pytest.mark.e2e
def test_links_of_the_page_have_only_names_and_values_that_it_knows(found):
    assert len(found["links"]) == 3
    for link in found["links"]:
        assert set(link["fragment"].split("&")) == set(link["encoded"].split("&"))


@pytest.mark.e2e
def test_what_the_page_says_about_its_links_is_so(found):
    noise, interval, auto = (link["panels"] for link in found["links"])
    for a, b in (noise, interval):  # B is nearer to the tilted density, in its mean and in its spread
        assert distance(b, b["tilted"]) < 0.7 * distance(a, a["tilted"])
        assert np.all(np.abs(np.subtract(b["std"], b["tilted"]["std"])) < np.subtract(a["tilted"]["std"], a["std"]))
    text = (FOLDER / "index.html").read_text()
    assert f"{interval[1]['evaluations']} evaluations instead of {interval[0]['evaluations']}" in " ".join(text.split())
    assert distance(auto[0], auto[0]["own"]) > 0.3
    assert distance(auto[1], auto[1]["own"]) < 0.03
    assert max(auto[1]["std"]) < 0.5 * auto[1]["own"]["std"]


def distance(one, other):
    """The distance of the means."""
    return float(np.linalg.norm(np.subtract(one["mean"], other["mean"])))


@pytest.mark.e2e
def test_wrong_values_of_a_permalink_are_replaced(found):
    assert found["repaired"] == "label=2&w=6"


@pytest.mark.e2e
def test_moving_a_control_changes_the_permalink_and_comparing_copies_the_setting(found):
    assert found["moved"] == "seed=3&compare=true&w=2.5&sampler=heun&b.rule=apg&b.w=2.5&b.sampler=heun"


@pytest.mark.e2e
def test_buttons_step_through_the_levels_and_play(found):
    stepped, played = found["played"][:3], found["played"][3:]
    last_but_one = GRIDS["edm"]()(LEVELS, 32)[-2]  # of the page's own grid
    level = f"λ = {last_but_one:.1f}, ς = {np.exp(-last_but_one / 2):.2g}"
    assert stepped == [["Play", "samples"], ["Play", level], ["Play", "samples"]]
    assert [text for text, _ in played] == ["Pause", "Play"]


@pytest.mark.e2e
def test_every_control_has_a_name_for_screen_readers(found):
    assert found["unnamed"] == []


@pytest.mark.e2e
def test_the_page_loads_and_works_without_an_error(found):
    assert found["errors"] == []


def test_the_page_is_small_and_needs_nothing_from_elsewhere():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"index.html", "style.css", "diffusion.js", "settings.js", "page.js"}
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    for path in files:
        text = path.read_text()
        assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|XMLHttpRequest|import\(", text), path.name
    loaded = re.findall(r'(?:src|<link[^>]* href)="([^"]+)"', (FOLDER / "index.html").read_text())
    assert set(loaded) == {"data:,", "style.css", "diffusion.js", "settings.js", "page.js"}
