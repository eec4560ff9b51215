"""Numbers in flags: finite, in ASCII digits, within their bounds, or one line that names the flag."""

import pytest
from tiny import EXPERIMENTS

from cfgjax.base.errors import UsageError
from cfgjax.base.numerals import real_number, whole_number
from cfgjax.cli import main as cli
from cfgjax.distributed.sharding import parse_mesh
from cfgjax.jobs.preflight.sizes import parse_bytes

OTHER_DIGITS = ("٣", "３", "²", "४", "-１", "1٠", "𝟛")
COMMANDS = {
    "sample --workdir=none --out=x.png": {
        "whole": ("seed", "per_cell", "step", "num_processes", "process_id"),
        "real": ("ema", "low_res_logsnr"),
        "real list": ("guidance", "scale", "classifier_scale"),
        "steps": ("num_steps", "upsampler_num_steps"),
    },
    "evaluate --workdir=none": {
        "whole": ("num_samples", "batch_size", "step"),
        "real": ("logsnr_max",),
        "whole list": ("seed",),
        "real list": ("guidance", "scale", "ema"),
    },
    f"preflight --config={EXPERIMENTS}/mixture.py": {"whole": ("devices", "config.seed")},
    "sweep --sweep=none.py --out=none": {"whole": ("parallel",)},
    "convert to-openai-adm --workdir=none --out=x.npz": {"whole": ("step",), "real": ("ema",)},
}
FLAGS = [(c, name, kind) for c, kinds in COMMANDS.items() for kind, names in kinds.items() for name in names]


@pytest.mark.parametrize(("command", "flag", "kind"), FLAGS)
def test_non_ascii_digits_and_non_finite_numbers_are_refused_with_the_flag(tmp_path, monkeypatch, command, flag, kind):
    monkeypatch.chdir(tmp_path)
    more = {"classifier_scale": ["--guide=none"], "upsampler_num_steps": ["--base=a", "--upsampler=b"]}.get(flag, [])
    more += ["--base=a", "--upsampler=b"] if flag == "low_res_logsnr" else []
    words = [word for word in command.split() if not (word.startswith("--workdir") and "--base=a" in more)]
    values = [*OTHER_DIGITS, *(("nan", "inf", "-inf", "1e999", "NaN") if kind.startswith("real") else ())]
    for value in values:
        given = f"1,{value}" if "list" in kind else value
        for spelled in ([f"--{flag}={given}"], [f"--{flag}", given]):
            if given.startswith("-") and len(spelled) == 2:
                continue  # which is read as a flag
            with pytest.raises(UsageError) as e:
                cli.run_command([*words, *more, *spelled])
            assert f"--{flag}={given}" in str(e.value)
            assert len(str(e.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        "sample --workdir=none --out=x.png --per_cell=0",
        "sample --workdir=none --out=x.png --per_cell=1000000000000",
        "sample --workdir=none --out=x.png --num_steps=",
        "sample --workdir=none --out=x.png --labels=",
        "sample --workdir=none --out=x.png --seed=",
        "sample --workdir=none --out=x.png --seed=one",
        "evaluate --workdir=none --num_samples=0",
        "evaluate --workdir=none --num_samples=1000000000000000000",
        "evaluate --workdir=none --batch_size=-1",
        "evaluate --workdir=none --batch_size=1000000000000000000",
        "evaluate --workdir=none --resize=foo",
        "evaluate --workdir=none --bits_per_dim --num_steps=",
        "evaluate --workdir=none --bits_per_dim --num_steps=2,3",
        f"preflight --config={EXPERIMENTS}/mixture.py --devices=0",
        f"preflight --config={EXPERIMENTS}/mixture.py --devices=1000000000000",
        f"preflight --config={EXPERIMENTS}/mixture.py --devices=1 --hbm=0GB",
        f"preflight --config={EXPERIMENTS}/mixture.py --devices=1 --hbm=1e999GB",
        "sweep --sweep=none.py --out=none --parallel=0",
    ],
)
def test_numbers_out_of_bounds_are_refused_before_anything_is_read(words):
    with pytest.raises(UsageError) as e:
        cli.run_command(words.split())
    name, _, value = words.split()[-1].removeprefix("--").partition("=")
    assert name in str(e.value) or value in str(e.value)
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize("text", OTHER_DIGITS)
def test_every_reader_of_numbers_accepts_only_ascii_digits(text):
    for reader in (whole_number, real_number):
        with pytest.raises(ValueError, match="other than 0-9"):
            reader(text)
    with pytest.raises(UsageError):
        parse_mesh([f"data={text}"])
    with pytest.raises(UsageError):
        parse_bytes(f"{text}GB")
    with pytest.raises(UsageError):
        parse_mesh(["data=--8"])


def test_plain_numbers_are_read():
    assert [whole_number(text) for text in ("0", "-1", "+7", "12")] == [0, -1, 7, 12]
    assert [real_number(text) for text in ("0.5", "-1e-3", "2")] == [0.5, -1e-3, 2.0]
    assert parse_mesh(["data=-1", "fsdp=8"]) == {"data": -1, "fsdp": 8}
    assert parse_bytes("1.5 GiB") == 3 * 2**29
