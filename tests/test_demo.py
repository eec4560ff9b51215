"""The demo: what its page draws, and the page itself in Chromium."""

import dataclasses
import re
import shlex
import shutil
import signal
import socket

import numpy as np
import pytest
from command import end_all, finish, free_port, start
from tiny import digits_config, mixture_config

import cfgjax
from cfgjax.api.demo_choice import DemoChoice
from cfgjax.base.errors import UsageError
from cfgjax.base.files import read_npz
from cfgjax.cli.main import run_command

CHOICE = DemoChoice((1, 2), 3, 2.0, "cfg()", "dpmpp_2m()", 4, "edm()", 5)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run on digits, trained for four steps."""
    workdir = tmp_path_factory.mktemp("digits") / "run"
    cfgjax.train(digits_config(), workdir)
    return workdir


def test_the_command_and_the_python_lines_draw_the_picture(workdir, tmp_path):
    model = cfgjax.load(workdir)
    images = CHOICE.samples(model)
    scope = {}
    exec(CHOICE.python(workdir), scope)
    assert np.array_equal(scope["images"], images)
    program, *words = shlex.split(CHOICE.command(workdir))
    assert program == "cfgjax"
    assert run_command([*words, f"--out={tmp_path / 'a.npz'}"]) == 0
    assert np.array_equal(read_npz(tmp_path / "a.npz")["arr_0"], images)


def test_the_pictures_have_a_row_for_each_class_and_a_column_for_each_level(workdir):
    model = cfgjax.load(workdir)
    picture, levels = CHOICE.pictures(model)
    more_classes, their_levels = dataclasses.replace(CHOICE, labels=(1, 2, 7)).pictures(model)
    assert more_classes.height > picture.height and their_levels.height > levels.height
    _, fewer_levels = dataclasses.replace(CHOICE, num_steps=2).pictures(model)
    assert fewer_levels.width < levels.width
    with pytest.raises(UsageError, match="choose at least one class"):
        dataclasses.replace(CHOICE, labels=()).pictures(model)


def refused(*words):
    with pytest.raises(UsageError) as raised:
        run_command(["demo", *words])
    return str(raised.value)


def test_what_cannot_be_shown_is_one_line(workdir, tmp_path):
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert f"--port={port}: Address already in use" in refused(f"--workdir={workdir}", f"--port={port}")
    cfgjax.train(mixture_config(), tmp_path / "points")
    told = refused(f"--workdir={tmp_path / 'points'}", f"--port={free_port()}")
    assert "the demo shows images" in told


@pytest.fixture
def page(workdir):
    """The page of the demo in Chromium, with the lines that the command printed."""
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no program chromium on the PATH")
    port = free_port()
    process = start(f"demo --workdir={workdir} --port={port}")
    try:
        printed = []
        while not printed or "the demo is at" not in printed[-1]:
            printed.append(process.stdout.readline())
            assert printed[-1], process.stderr.read()
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page()
            page.asked, page.failed = [], []
            page.on("request", lambda request: page.asked.append(request.url))
            page.on("pageerror", lambda error: page.failed.append(str(error)))
            page.goto(f"http://127.0.0.1:{port}")
            page.wait_for_selector("img[src*=file]")
            page.process = process
            yield page
            browser.close()
    finally:
        end_all()


def sources(page):
    return [image.get_attribute("src") for image in page.query_selector_all("img[src*=file]")]


def changed(page, before):
    page.wait_for_function(
        "before => document.querySelector('img[src*=file]').getAttribute('src') !== before", arg=before
    )
    return sources(page)


@pytest.mark.e2e
def test_moving_w_draws_again_without_a_compilation_and_two_settings_stand_side_by_side(page):
    weight = page.get_by_label("number input for guidance weight w").first
    seen = sources(page)[:1]
    for w in ("3", "0", "-1", "0.5"):
        weight.fill(w)
        weight.press("Enter")
        seen.append(changed(page, seen[-1])[0])
    assert len(set(seen)) == 5
    page.get_by_label("compare with a second setting").check()
    page.wait_for_function("document.querySelectorAll('img[src*=file]').length === 2")
    assert "--guidance=0.5" in page.inner_text("body")
    assert not page.failed
    assert all(url.startswith(("http://127.0.0.1", "data:", "blob:", "ws://127.0.0.1")) for url in page.asked)
    page.process.send_signal(signal.SIGINT)
    code, out, err = finish(page.process)
    assert code in (0, 75), err
    assert len(re.findall(r"compiling the guided sampler .*: done", out)) == 1
