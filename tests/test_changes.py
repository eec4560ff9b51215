"""Which values of a config may change when a run resumes, and the record of those that did."""

import contextlib
import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from runs import metrics, train
from test_base_config import reference_values
from tiny import digits_config, mixture_config, same_trees, settings

import cfgjax
from cfgjax.base.errors import UsageError
from cfgjax.cli import main as cli
from cfgjax.cli import train as train_command
from cfgjax.data.sources.registry import data_hash, open_source
from cfgjax.evaluation.report.protocol import protocol
from cfgjax.runs import changes
from cfgjax.runs.changes import HASH_KEY, Hashes, check_allowed, check_resumable, in_effect, read_changes
from cfgjax.runs.checkpoint import Checkpoints
from cfgjax.runs.config import parse_flags
from cfgjax.runs.training_settings import CheckpointSettings
from cfgjax.runs.workdir import Claim, read_settings
from cfgjax.training.run import Run

SAVED = mixture_config()
SAME, OTHER = Hashes("a" * 64, "a" * 64), Hashes("a" * 64, "b" * 64)


def changed(hashes=None, allowed=(), saved=SAVED, **values):
    """The changes with which a run of `saved` resumes with other values."""
    config = saved.copy_and_resolve_references()
    config.unlock()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in values.items()})
    return check_resumable(settings(saved), settings(config), hashes, allowed)


@pytest.mark.parametrize("key", reference_values())
def test_every_key_has_a_rule_and_only_keys_of_the_network_have_it_by_default(key):
    rule = changes.rule_of(key)
    section = key.partition(".")[0]
    assert rule in ("always", "same data", "if allowed", "never")
    if section in ("checkpoint", "sample", "evaluate", "mesh", "cluster", "log"):
        assert rule == "always"
    if section == "model":
        assert (rule == "never") == (
            key not in ("model.remat", "model.fused_attention", "model.dropout", "model.dtype")
        )


def test_rules_are_of_keys_that_exist():
    named = {*changes.FREE_KEYS, *changes.PLACE_KEYS, *changes.FIXED_KEYS, *changes.NOT_OF_PARAMETERS}
    assert named <= reference_values().keys()


FREELY = {
    "train__num_steps": 80,
    "train__accumulate_steps": 4,
    "train__steps_per_dispatch": 5,
    "train__max_skipped_in_row": 3,
    "mesh__data": 1,
    "sample__guidance": (7.0,),
    "checkpoint__every_steps": 7,
}


@pytest.mark.parametrize("key", FREELY)
def test_what_does_not_change_a_run_needs_no_flag(key):
    assert changed(**{key: FREELY[key]}) == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.learning_rate", 0.5),
        ("optimizer.decay_steps", 900),
        ("train.batch_size", 8),
        ("ema.warmup", True),
        ("diffusion.p_uncond", 0.3),
        ("data.num_examples", 99),
        ("seed", 5),
    ],
)
def test_what_changes_a_run_needs_its_flag_which_the_refusal_names(key, value):
    before = settings(SAVED).replace(**{"ema.warmup": False})
    after = before.replace(**{key: value})
    with pytest.raises(UsageError, match=rf"{key} is .*, the run has .*; add --allow_changes={key} ") as e:
        check_resumable(before, after)
    assert "\n" not in str(e.value)
    assert list(check_resumable(before, after, None, {key})) == [key]


def test_all_keys_of_one_flag_are_named():
    with pytest.raises(UsageError, match=r"--allow_changes=optimizer\.learning_rate,train\.batch_size to resume"):
        changed(optimizer__learning_rate=0.5, train__batch_size=8)


@pytest.mark.parametrize("key", ["model.width", "diffusion.parametrisation", "ema.rates", "data.num_classes"])
def test_what_the_checkpoints_depend_on_is_refused_with_the_reason(key):
    with pytest.raises(UsageError, match=rf"{key} cannot change in a run: .*; use another workdir"):
        check_allowed([key], SAVED)
    value = {"model.width": 64, "diffusion.parametrisation": "v", "ema.rates": (0.5,), "data.num_classes": 3}[key]
    if settings(SAVED).replace(**{key: value}).given != settings(SAVED).given:
        with pytest.raises(UsageError, match=rf"{key} cannot change in a run \(.*\): use another workdir"):
            changed(allowed=(key,), **{key.replace(".", "__"): value})


def test_clipping_may_change_but_not_begin():
    clipped = mixture_config(**{"optimizer.clip_norm": 1.0})
    allowed = ("optimizer.clip_norm",)
    assert list(changed(allowed=allowed, saved=clipped, optimizer__clip_norm=2.0)) == ["optimizer.clip_norm"]
    with pytest.raises(UsageError, match="structure with and without clipping"):
        check_resumable(settings(mixture_config(**{"optimizer.clip_norm": None})), settings(clipped), None, allowed)


def test_accumulation_draws_other_dropout():
    before = settings(digits_config(**{"model.dropout": 0.1}))
    after = before.replace(**{"train.accumulate_steps": 2})
    with pytest.raises(UsageError, match=r"--allow_changes=train\.accumulate_steps"):
        check_resumable(before, after)
    assert not check_resumable(*(part.replace(**{"model.dropout": 0.0}) for part in (before, after)))


@pytest.mark.parametrize("key", ["path", "crop"])
def test_data_may_move_if_they_are_the_same(key):
    before = settings(cfgjax.load_config("cifar10"))
    after = before.replace(**{f"data.{key}": "lanczos"})
    assert check_resumable(before, after, SAME) == {}
    for hashes, reason in [(Hashes(), "is not known"), (OTHER, f"hash {'b' * 16}")]:
        with pytest.raises(UsageError, match=rf"{reason}.*--allow_changes=data\.{key} "):
            check_resumable(before, after, hashes)
    assert list(check_resumable(before, after, Hashes(), {f"data.{key}"})) == [f"data.{key}"]
    assert list(check_resumable(before, after, OTHER, {f"data.{key}"})) == [f"data.{key}", "data.hash"]


def test_other_data_in_the_same_place_need_the_flag():
    same = settings(cfgjax.load_config("cifar10"))
    with pytest.raises(UsageError, match=rf"hash {'a' * 16}, but .* hash {'b' * 16}; .* --allow_changes=data\.path"):
        check_resumable(same, same, OTHER)
    assert list(check_resumable(same, same, OTHER, {"data.path"})) == ["data.hash"]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("optimizer.learning_rat", "'optimizer.learning_rat', did you mean 'optimizer.learning_rate'"),
        ("optimizer", "'optimizer' is a section; give its keys, such as optimizer.name"),
        ("seed,model.width", "model.width cannot change in a run"),
        ("seed,", "allow_changes='seed,' has an empty key; need some such as optimizer.learning_rate"),
        ("", "allow_changes='' has an empty key"),
    ],
)
def test_a_key_that_cannot_be_allowed_is_a_one_line_error_before_any_work(keys, told, tmp_path):
    words = ["train", "--config=mixture", f"--workdir={tmp_path}/run", f"--allow_changes={keys}"]
    with pytest.raises(UsageError) as e:
        cli.run_command(words)
    assert told in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(UsageError, match=re.escape(told)):
        cli.run_command(["launch", "local", "--dry_run", "--", *words])
    with pytest.raises(UsageError, match=re.escape(told)):
        cfgjax.train(mixture_config(), tmp_path / "run", allow_changes=keys)
    assert not list(tmp_path.iterdir())


def test_allowed_keys_may_stay_as_they_are():
    assert check_allowed(("seed", " train.num_steps"), SAVED) == {"seed", "train.num_steps"}
    assert changed(allowed=("seed",)) == {}


def test_the_hash_of_arrays_in_memory_is_that_of_their_file(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        np.savez(tmp_path / name, image=rng.integers(0, 256, (6, 4, 4, 1), np.uint8), label=np.arange(6))
    (tmp_path / "moved.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    found = {}
    for name in ("a", "b", "moved"):
        data = settings(digits_config()).data
        options = {"path": str(tmp_path / f"{name}.npz")}
        data = dataclasses.replace(data, source="npz", image_shape=(4, 4, 1), options=options)
        found[name] = data_hash(data, open_source(data))
    assert found["a"] == found["moved"] != found["b"]
    digits = settings(digits_config()).data
    assert data_hash(digits, open_source(digits)) is None


def recorded(workdir, config, step, allowed=()):
    """The record of a run after it has resumed at this step with a config."""
    with contextlib.closing(Claim(workdir, settings(config), None, None, allowed)) as claim:
        claim.write_config(step)
    return [(c["step"], c["key"], c["from"], c["to"]) for c in read_changes(workdir)]


def rate(value):
    return mixture_config(**{"optimizer.learning_rate": value})


RATE = "optimizer.learning_rate"


def test_changes_are_recorded_with_the_step_from_which_they_hold(tmp_path):
    assert recorded(tmp_path, rate(1.0), 0) == [] and not (tmp_path / "changes.json").exists()
    assert recorded(tmp_path, rate(0.5), 10, {RATE}) == [(10, RATE, 1.0, 0.5)]
    assert recorded(tmp_path, rate(0.5), 20, {RATE}) == [(10, RATE, 1.0, 0.5)]
    assert recorded(tmp_path, rate(0.2), 30, {RATE}) == [(10, RATE, 1.0, 0.5), (30, RATE, 0.5, 0.2)]
    assert read_settings(tmp_path).optimizer.learning_rate == 0.2
    # the checkpoint of step 30 is lost: from step 20 on, the newest value holds
    assert recorded(tmp_path, rate(0.2), 20) == [(10, RATE, 1.0, 0.5), (20, RATE, 0.5, 0.2)]
    assert recorded(tmp_path, rate(0.1), 10, {RATE}) == [(10, RATE, 1.0, 0.1)]
    assert recorded(tmp_path, rate(1.0), 10, {RATE}) == []
    assert recorded(tmp_path, rate(0.3), 0, {RATE}) == []  # the run begins anew


def test_a_change_that_never_took_effect_is_forgotten(tmp_path):
    recorded(tmp_path, rate(1.0), 0)
    kept = (tmp_path / "config.json").read_text()
    recorded(tmp_path, rate(0.5), 10, {RATE})
    (tmp_path / "config.json").write_text(kept)  # as if it had been killed between the two files
    assert recorded(tmp_path, rate(1.0), 10) == []


def test_a_record_of_other_data_is_kept_when_the_data_move():
    change = [
        {"step": 2, "key": "data.path", "from": "A", "to": "B"},
        {"step": 2, "key": HASH_KEY, "from": "a", "to": "b"},
    ]
    assert in_effect(change, {"data.path": "C", HASH_KEY: "b"}) == change
    assert in_effect(change, {"data.path": "A", HASH_KEY: "a"}) == []  # it never took effect
    later = [*change, {"step": 4, "key": "data.path", "from": "C", "to": "D"}]
    assert in_effect(later, {"data.path": "C", HASH_KEY: "b"}) == change


def test_the_flag_may_be_given_more_than_once():
    given = train_command.define_flags(["cfgjax train"])
    parse_flags(given, ["cfgjax train", "--allow_changes=seed,optimizer.b1", "--allow_changes=optimizer.b2"])
    assert check_allowed(given.allow_changes, SAVED) == {"seed", "optimizer.b1", "optimizer.b2"}


@pytest.mark.parametrize(
    "content", ["", "{}", "[3]", '[{"step": 1}]', '[{"step": "1", "key": "a", "from": 1, "to": 2}]']
)
def test_a_damaged_record_is_reported_on_one_line_and_kept(tmp_path, content):
    recorded(tmp_path, rate(1.0), 0)
    (tmp_path / "changes.json").write_text(content)
    with pytest.raises(UsageError, match=r"changes\.json is damaged: ") as e:
        recorded(tmp_path, rate(1.0), 10)
    assert "\n" not in str(e.value) and (tmp_path / "changes.json").read_text() == content


def test_a_protocol_has_the_changes_before_its_checkpoint(tmp_path):
    recorded(tmp_path, rate(1.0), 0)
    recorded(tmp_path, rate(0.5), 10, {RATE})
    assert changes.changes_before(tmp_path, 10) == []
    row = {"guidance_weight": 0.0, "rule": "cfg()"}
    card = protocol({"changes": changes.changes_before(tmp_path, 11)}, [row])
    assert card["changes in training"] == f"{RATE} 1 → 0.5 from step 10"
    assert protocol({}, [row])["changes in training"] == "none"


def test_a_step_between_two_dispatches_is_refused():
    run = Run(mixture_config(**{"train.steps_per_dispatch": 10, "mesh.data": 1}), devices=jax.devices()[:1])
    run.check_step(20)
    with pytest.raises(UsageError, match="step 25, which is not a multiple of train.steps_per_dispatch 10; use 5"):
        run.check_step(25)


def final_state(workdir, config):
    run = Run(config, devices=jax.devices()[:1])
    with Checkpoints(workdir / "checkpoints", CheckpointSettings(1)) as checkpoints:
        return jax.device_get(checkpoints.restore(run.like)[0])


def assert_close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5)


def points_config(path, **values):
    """The config of a run on the points in an .npz file."""
    given = mixture_config(**{"train.num_steps": 8, "train.log_every_steps": 2, "mesh.data": 1, **values}).to_dict()
    given["data"] = {"source": "npz", "path": str(path), "num_classes": 3, "image_shape": (2,)}
    return settings(given)


@pytest.mark.slow
def test_resumed_runs_are_the_same_whatever_does_not_change_them(tmp_path):
    rng, here, there, moved = np.random.default_rng(0), *(tmp_path / f"{name}.npz" for name in ("a", "b", "moved"))
    for path in (here, there):
        np.savez(path, image=rng.normal(size=(64, 2)).astype(np.float32), label=np.arange(64) % 3)
    moved.write_bytes(here.read_bytes())
    train(points_config(here), tmp_path / "straight")
    expected = final_state(tmp_path / "straight", points_config(here))

    def resumed(name, then, allow_changes=()):
        train(points_config(here, **{"train.num_steps": 4}), tmp_path / name)
        train(then, tmp_path / name, allow_changes=allow_changes)
        return final_state(tmp_path / name, then)

    assert same_trees(resumed("same", points_config(here)), expected)
    assert same_trees(resumed("moved", points_config(moved)), expected)
    assert metrics(tmp_path / "moved") == metrics(tmp_path / "straight")
    assert read_settings(tmp_path / "moved").data.options["path"] == str(moved)
    assert not read_changes(tmp_path / "moved")
    assert_close(resumed("parts", points_config(here, **{"train.accumulate_steps": 4})), expected)
    assert_close(resumed("dispatch", points_config(here, **{"train.steps_per_dispatch": 2})), expected)

    with pytest.raises(UsageError, match=r"--allow_changes=data\.path"):
        resumed("other", points_config(there))
    lower = points_config(here, **{RATE: 1e-5})
    with pytest.raises(UsageError, match=f"--allow_changes={RATE}"):
        resumed("lower", lower)
    state = resumed("lower", lower, (RATE,))
    assert int(state.step) == 8 and not same_trees(state.params, expected.params)
    assert [(c["step"], c["key"], c["to"]) for c in read_changes(tmp_path / "lower")] == [(4, RATE, 1e-5)]
    assert json.loads((tmp_path / "lower" / "config.json").read_text())["optimizer"]["learning_rate"] == 1e-5


@pytest.mark.slow
def test_a_run_resumes_in_another_compute_dtype_and_with_other_parts_of_a_batch(tmp_path, capsys):
    given = {"mesh.data": 1, "sample.every_steps": 2}
    train(digits_config(**given, **{"train.num_steps": 2}), tmp_path)
    other = digits_config(**given, **{"train.accumulate_steps": 2, "model.dtype": "bfloat16"})
    train(other, tmp_path, allow_changes=("model.dtype",))
    assert "changed: model.dtype float32 → bfloat16 from step 2\n" in capsys.readouterr().out
    assert [change["key"] for change in read_changes(tmp_path)] == ["model.dtype"]
