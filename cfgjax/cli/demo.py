"""`cfgjax demo`: a local page with sliders."""

import importlib.util
import os
import socket
import sys
from typing import NoReturn

from absl import flags

from cfgjax.base.errors import UsageError
from cfgjax.base.exits import DONE
from cfgjax.base.paths import define_path
from cfgjax.cli.common import begin_command, define_checkpoint, no_arguments, required
from cfgjax.distributed.cpu_devices import use_cores
from cfgjax.runs.config import parse_flags

DEMO_PORT = 7860


def demo(argv: list[str]) -> NoReturn:
    """--workdir=DIR [--port=N]: opens a page on which sliders change guidance, sampler and seed."""
    given = define_flags(argv)
    no_arguments(parse_flags(given, argv))
    required(given, "workdir")
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("cfgjax demo needs gradio: pip install 'cfgjax[demo]'")
    check_port(given.host, given.port)
    begin_command(given, f"demo of {given.workdir}")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

    from cfgjax.distributed.devices import open_devices

    use_cores()
    open_devices()

    import gradio as gr

    from cfgjax.api.demo_page import FONT, make_page
    from cfgjax.models.loading import load

    page = make_page(load(given.workdir, given.step, given.ema), given.workdir)
    page.launch(
        server_name=given.host,
        server_port=given.port,
        share=given.share,
        inbrowser=given.browser,
        theme=gr.themes.Default(font=FONT, font_mono=["monospace"]),
        prevent_thread_lock=True,
        quiet=True,
    )
    print(f"the demo is at {page.share_url or page.local_url}; Ctrl-C ends it", flush=True)
    page.block_thread()
    sys.stdout.flush()
    os._exit(DONE)  # a thread of the page that is inside XLA would abort the process if the interpreter ended first


def check_port(host: str, port: int) -> None:
    """Raises UsageError if the port cannot be opened."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as e:
        raise UsageError(f"--port={port}: {e.strerror or e}; give another port") from None


def define_flags(argv: list[str]) -> flags.FlagValues:
    """Returns the flags of the command."""
    given = flags.FlagValues()
    define_path("workdir", None, "Folder of the run, or an exported model.", flag_values=given)
    define_checkpoint(given)
    what = "Port on which the page is served."
    flags.DEFINE_integer("port", DEMO_PORT, what, flag_values=given, lower_bound=1, upper_bound=65535)
    what = "Address on which the page is served; 0.0.0.0 for all network interfaces of this machine."
    flags.DEFINE_string("host", "127.0.0.1", what, flag_values=given)
    flags.DEFINE_bool("share", False, "Make a public link through gradio's servers, as Colab needs.", flag_values=given)
    flags.DEFINE_bool("browser", False, "Also open the page in a browser.", flag_values=given)
    return given
