"""What a run's folder says, read again."""

import contextlib
import json

import jax
import numpy as np
import pytest
from tiny import EXPERIMENTS, mixture_config, settings

import cfgjax
from cfgjax.base.errors import UsageError, printable
from cfgjax.cli import main as cli
from cfgjax.cli.common import class_list
from cfgjax.distributed import collectives
from cfgjax.models.class_names import known_classes
from cfgjax.models.network import check_params, init_params, make_network
from cfgjax.runs.changes import check_resumable
from cfgjax.runs.config import from_json, load_file, to_json
from cfgjax.runs.metrics_file import last_logged_step, metrics_line
from cfgjax.runs.workdir import Claim, read_data_hash, read_settings


@pytest.mark.parametrize(("written", "name"), [(False, "none"), (True, "blocks")])
def test_rematerialisation_written_as_true_or_false_is_read_by_name(tmp_path, written, name):
    config = load_file(EXPERIMENTS / "digits.py")
    config.model.remat = name
    now, then = f'"remat": "{name}"', f'"remat": {str(written).lower()}'
    assert now in to_json(config)
    (tmp_path / "config.json").write_text(to_json(config).replace(now, then))
    found = read_settings(tmp_path)
    assert found.model.options["remat"] == name
    check_resumable(found, settings(config))


def test_a_key_that_a_run_of_an_older_version_lacks_equals_its_default(tmp_path):
    old = mixture_config()
    for name in ("widths", "snapshot_every_steps", "warmup"):
        with old.ema.unlocked():
            del old.ema[name]
    (tmp_path / "config.json").write_text(to_json(old))
    found = read_settings(tmp_path)
    check_resumable(found, settings(mixture_config(**{"ema.warmup": False})))
    for changes in ({"ema.widths": (0.1,)}, {"ema.warmup": True}):
        with pytest.raises(UsageError, match=rf"{next(iter(changes))} .* the run has (\(\)|False)"):
            check_resumable(found, settings(mixture_config(**{"ema.warmup": False, **changes})))


def test_a_process_with_another_data_set_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(collectives, "allgather", lambda told, what: [told, told | {"data": np.array("b" * 64)}])
    with pytest.raises(UsageError, match="process 1 has .* b{16} at data/cifar10, process 0 the one with hash a{16};"):
        Claim(tmp_path, settings(load_file(EXPERIMENTS / "cifar10.py")), "a" * 64)


def rows(workdir, labels, num_classes):
    """The rows of a grid as `cfgjax sample` names them, for a run with this number of classes."""
    config = mixture_config()
    config.data.update(means=[(float(k), 0.0) for k in range(num_classes)], num_classes=num_classes)
    config.data.update(stds=[1.0] * num_classes, weights=[1 / num_classes] * num_classes)
    return class_list(labels, known_classes(workdir, settings(config)))


@pytest.mark.parametrize("names", [("0", "1", "10", "2"), ("caf\udce9", "new\nline", "kafé", "a")])
def test_a_run_records_its_class_names_and_sample_grids_show_them(tmp_path, names):
    config = load_file(EXPERIMENTS / "cifar10.py")
    with contextlib.closing(Claim(tmp_path, settings(config), "a" * 64, names)) as claim:
        claim.write_config()
    told = rows(tmp_path, [2, 0], 4)
    assert told == f"2 {printable(names[2])}, 0 {printable(names[0])}" and told.isprintable()
    assert rows(tmp_path, [2, 0], 5) == "2, 0"  # those of another set


@pytest.mark.parametrize("content", [None, {"hash": "a" * 64}, {"classes": 7}])
def test_rows_of_runs_without_class_names_only_have_labels(tmp_path, content):
    if content is not None:
        (tmp_path / "data.json").write_text(json.dumps(content))
    assert rows(tmp_path, range(3), 3) == "0, 1, 2"
    assert rows(tmp_path, range(1000), 1000).endswith("…, 999")


CONFIG = mixture_config()
SECTIONS = [name for name in CONFIG if name not in ("evaluate", "cluster", "log", "storage")]
CONFIG_DAMAGE = {
    "empty": b"",
    "a list": b"[]",
    "a number": b"3",
    "an empty object": b"{}",
    "null": b"null",
    "not JSON": b"seed: 0",
    "torn": to_json(CONFIG).encode()[:-20],
    "NUL bytes": b"\0" * 200,
    "not UTF-8": to_json(CONFIG).encode().replace(b"mixture", b"mixt\xffre"),
    "deep": b"[" * 100_000,
    "a key with a dot": json.dumps(CONFIG.to_dict() | {"a.b": 1}).encode(),
    **{f"without {name}": json.dumps({k: v for k, v in CONFIG.to_dict().items() if k != name}) for name in SECTIONS},
    **{f"{name} a list": json.dumps(CONFIG.to_dict() | {name: []}) for name in CONFIG if name != "seed"},
    **{
        f"{section}.{key} {what}": json.dumps(CONFIG.to_dict() | {section: CONFIG[section].to_dict() | {key: value}})
        for section, key in [("data", "image_shape"), ("data", "num_classes"), ("model", "name"), ("ema", "rates")]
        for what, value in [("null", None), ("an object", {}), ("a list of texts", ["x"])]
    },
}


@pytest.mark.parametrize("kind", CONFIG_DAMAGE)
def test_a_damaged_config_is_a_one_line_error_when_reading_and_resuming(tmp_path, kind):
    content = CONFIG_DAMAGE[kind]
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = path.read_bytes()
    for use in (read_settings, cfgjax.load, lambda workdir: Claim(workdir, settings(CONFIG))):
        with pytest.raises(UsageError) as e:
            use(tmp_path)
        assert str(path) in str(e.value)
        assert len(str(e.value).splitlines()) == 1
    assert path.read_bytes() == before


WRONG_JSON = [
    "null",
    "NaN",
    "-1e400",
    "9" * 400,
    "1e999",
    "-5",
    "true",
    '""',
    '"\\u0000"',
    "[[]]",
    "[null]",
    '{"a": 1}',
]


def complaint(workdir):
    """What `read_settings` says about the run in a workdir, or None."""
    try:
        read_settings(workdir)
    except UsageError as e:
        return str(e)
    return None


@pytest.mark.parametrize("section", [name for name in CONFIG if name != "seed"])
def test_any_value_in_a_config_is_read_or_refused_on_one_line(tmp_path, section):
    path, values, texts = tmp_path / "config.json", CONFIG.to_dict(), []
    for key in values[section]:
        marked = json.dumps(values | {section: values[section] | {key: "HERE"}})
        for text in WRONG_JSON:
            path.write_text(marked.replace('"HERE"', text))
            texts.append(complaint(tmp_path))
    refused = [text for text in texts if text is not None]
    assert all(text.startswith(f"{path} is damaged: ") and len(text.splitlines()) == 1 for text in refused)
    assert all(section in text or "not JSON" in text for text in refused)
    assert len(refused) > 0.7 * len(texts)


def test_every_truncated_file_of_a_run_is_read_or_refused_on_one_line(tmp_path):
    whole = {
        "config.json": (to_json(CONFIG), read_settings),
        "data.json": (json.dumps({"hash": "a" * 64, "source": "npz", "classes": ["a", "b"]}), read_data_hash),
        "metrics.jsonl": (metrics_line(1, {"loss": 0.5}) + metrics_line(2, {"loss": 0.25}), last_logged_step),
    }
    for name, (text, read) in whole.items():
        path = tmp_path / name
        path.write_text(text)
        expected = read(tmp_path)
        for length in range(0, len(text.rstrip()), 1 + len(text) // 100):
            path.write_text(text[:length])
            if name == "metrics.jsonl":  # damaged lines are left out
                assert read(tmp_path) in (0, 1, expected)
                continue
            with pytest.raises(UsageError, match=f"{name} is damaged") as e:
                read(tmp_path)
            assert len(str(e.value).splitlines()) == 1
        path.write_text(text)


def test_a_config_of_an_older_version_without_later_sections_is_read(tmp_path):
    older = {name: section for name, section in CONFIG.to_dict().items() if name not in ("evaluate", "cluster")}
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert read_settings(tmp_path).to_dict() == older


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"hash": 3}', b"\0\0", b'{"hash": "a"', b"[" * 100_000])
def test_a_damaged_data_record_is_reported_on_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(to_json(CONFIG))
    (tmp_path / "data.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"data\.json is damaged") as e:
        Claim(tmp_path, settings(CONFIG))
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize(("key", "value"), [("model.width", 33), ("model.depth", 2), ("data.image_shape", (3,))])
def test_a_config_that_does_not_belong_to_the_checkpoint_is_refused(key, value):
    params = jax.eval_shape(
        lambda: init_params(make_network(settings(CONFIG)), jax.random.key(0), CONFIG.data.image_shape)
    )
    check_params("run", settings(CONFIG), params)
    other = json.loads(to_json(CONFIG))
    section, _, name = key.partition(".")
    other[section][name] = value
    with pytest.raises(UsageError, match=r"run: config\.json and the checkpoint do not fit"):
        check_params("run", settings(from_json(json.dumps(other))), params)


@pytest.mark.parametrize("key", [None, "source", "num_classes", "image_shape", "means", "stds", "weights"])
def test_a_config_with_missing_data_is_reported_on_one_line(tmp_path, key):
    config = mixture_config().to_dict()
    if key is None:
        del config["data"]
    else:
        del config["data"][key]
    path = tmp_path / "mine.py"
    path.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({config})\n")
    with pytest.raises(UsageError, match=rf"lacks .*{key or 'data'}"):
        cli.run_command(["evaluate", "--make_reference", f"--config={path}", f"--out={tmp_path}/x.npz"])
