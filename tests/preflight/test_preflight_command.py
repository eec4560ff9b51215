"""`cfgjax preflight` as a process."""

import json

import pytest
from command import run

from cfgjax.base.errors import UsageError
from cfgjax.cli.preflight import preflight
from cfgjax.runs.settings import SECTIONS

MIXTURE = (
    "preflight --config=experiments/mixture.py --config.model.width=256 --config.train.batch_size=64 "
    "--config.train.steps_per_dispatch=1 --config.data.num_examples=256 "
)


@pytest.mark.e2e
def test_a_step_for_devices_that_are_not_there_is_reported_and_one_is_taken_here(tmp_path):
    path = tmp_path / "figures.json"
    command = f"--devices=64 --mesh=data=16,fsdp=4 --hbm=16GiB --json={path} --run --scratch={tmp_path}"
    code, out, err = run(MIXTURE + command)
    assert code == 0, err
    found = json.loads(path.read_text())
    assert (found["devices"], found["mesh"]) == (64, {"data": 16, "fsdp": 4})
    assert found["batch"] == {"global": 64, "per_device": 1, "per_pass": 1, "accumulate_steps": 1}
    parts = found["bytes_per_device"]
    summed = ("parameters", "optimizer", "ema", "gradients", "batch", "gathered", "activations")
    assert parts["peak"] == sum(parts[name] for name in summed)
    assert found["collectives"]["all-reduce"]["bytes"] > 0
    assert found["fits"]["named"]["fits"] and found["fits"]["hbm"] == 2**34
    assert (found["trial"]["devices"], found["trial"]["restored_equals_saved"]) == (1, True)
    for told in (
        "mesh        data 16 × fsdp 4",
        "activations kept",
        "largest batch in 95% of",
        "all-reduce",
        "forward",
    ):
        assert told in out
    assert "one real step on 1 × cpu, mesh data 1 × fsdp 1, which fits the available devices; batch 1" in out
    assert [entry.name for entry in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--devices=8 --mesh=data=3,fsdp=2", "mesh {'data': 3, 'fsdp': 2} does not match the 8 devices"),
        ("--devices=48", "batch_size 64 is not divisible by 48 devices; use 48 or 96"),
    ],
)
def test_devices_that_do_not_go_together_with_the_config_are_told(flags, told):
    code, out, err = run(MIXTURE + flags)
    assert (code, out, err) == (2, "", f"cfgjax: error: {told}\n")


@pytest.mark.parametrize("section", ["seed", *SECTIONS])
def test_a_config_without_a_section_is_told(tmp_path, section):
    path = tmp_path / "mine.py"
    config = {name: 0 if name == "seed" else {} for name in ["seed", *SECTIONS] if name != section}
    path.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({config})\n")
    with pytest.raises(UsageError, match=f"lacks the sections {section}$"):
        preflight(["cfgjax preflight", f"--config={path}", "--devices=1"])


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--devices=8 --mesh=data=3,fdsp=2", "--mesh=data=3,fdsp=2: need sizes of axes such as"),
        ("--devices=8 --mesh=8", "--mesh=8: need sizes of axes such as"),
        ("--devices=8 --hbm=16", "'16' is not a size; need a number and a unit"),
        ("--devices=0", "flag --devices=0"),
        ("", "--devices must be given"),
        ("--devices=8 --scratch=x", "--scratch has no effect without --run"),
        ("--devices=8 --run --scratch=nowhere", "--scratch=nowhere: need a writable folder"),
        ("--devices=8 --json=nowhere/x.json", "--json=nowhere/x.json: it cannot be written"),
    ],
)
def test_bad_flags_are_told_before_anything_is_compiled(flags, told):
    with pytest.raises(UsageError) as raised:
        preflight(["cfgjax preflight", *MIXTURE.split()[1:], *flags.split()])
    assert told in str(raised.value)
