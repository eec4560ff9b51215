"""Long work is announced before it begins, and reported with its duration."""

import functools
import io
import re
import time

import jax
import pytest
from tiny import mixture_config, settings

from cfgjax.base import progress
from cfgjax.base.progress import BAR
from cfgjax.models.model import Model
from cfgjax.models.network import init_params, make_network
from cfgjax.training.log import BAR_COLUMNS, fitting


@pytest.fixture
def lines():
    """The file to which progress is written, while the test runs."""
    file, before = io.StringIO(), progress.log.propagate
    progress.show_progress(file)
    yield file
    progress.show_progress(None)
    progress.log.propagate = before


def test_the_python_api_is_silent(capsys):
    with progress.timed("work"):
        pass
    assert capsys.readouterr() == ("", "")


def test_work_is_announced_before_it_begins_and_its_duration_afterwards(lines):
    with progress.timed("work"):
        assert lines.getvalue() == "work …\n"
    assert re.fullmatch(r"work …\nwork: done in \d+\.\d s\n", lines.getvalue())


@pytest.mark.slow
def test_each_sampler_is_announced_when_it_is_compiled(lines):
    config = mixture_config()
    params = init_params(make_network(settings(config)), jax.random.key(0), config.data.image_shape)
    model = Model(config, params)
    sample = lambda **options: model.sample([0, 1], sampler="ddim", **options)
    for steps, guidance, compiles in [(2, 0.0, 1), (2, 0.0, 0), (2, 1.0, 1)]:
        before = model._sample._cache_size()
        lines.truncate(0)
        lines.seek(0)
        sample(num_steps=steps, guidance=guidance)
        assert model._sample._cache_size() - before == compiles
        assert lines.getvalue().count(f"({steps} steps, batch 2)") == 2 * compiles


def test_without_a_terminal_progress_lines_appear_at_intervals(lines, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.Progress("drawing", "sample", 10) as bar:
        assert "drawing: 10 samples" in lines.getvalue()
        time.sleep(0.01)
        bar.advance(4)
    assert "drawing: 4 of 10 samples" in capsys.readouterr().out
    with progress.Progress("drawing", "sample", 10, write=False) as bar:
        bar.advance(4)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(("columns", "least"), [(40, 3), (60, 20), (80, 40)])
def test_the_bar_of_a_command_fits_any_width(columns, least, monkeypatch):
    shown = io.StringIO()
    make = functools.partial(progress.tqdm.tqdm, disable=False, ncols=columns, file=shown, ascii=".#")
    monkeypatch.setattr(progress.tqdm, "tqdm", lambda dynamic_ncols, disable, file, **options: make(**options))
    with progress.Progress("samples", "sample", 14_000) as bar:
        bar.advance(7_000)
        bar._bar.refresh()
        line = shown.getvalue().split("\r")[-1].rstrip()
    assert len(line) <= columns and line.startswith("samples:  50%|") and "7000/14000 ETA" in line
    assert len(re.search(r"\|([.#]+)\|", line)[1]) >= least


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_the_bar_is_legible_at_any_width(columns):
    entries = ["123,456 images/s", "loss 0.1234", "cond 0.1234", "uncond 0.1234", "skipped 12"]
    text = fitting(entries, columns - BAR_COLUMNS)
    line = progress.tqdm.tqdm.format_meter(
        500_000, 10**6, 36_000, ncols=columns, bar_format=BAR, postfix=text, ascii=".#"
    )
    assert len(line) <= columns and entries[0] in line
    assert len(re.search(r"\|([.#]+)\|", line)[1]) >= 10
    assert all(entry in entries for entry in text.split(", "))
