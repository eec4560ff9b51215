"""The page of `cfgjax demo`: sliders for guidance, two settings side by side, the trajectory, and the lines of code."""

from typing import Any

from cfgjax.api.demo_choice import DemoChoice
from cfgjax.base.errors import UsageError, one_line
from cfgjax.base.storage import Place
from cfgjax.models.class_names import short_name
from cfgjax.models.model import Model

OFFERED_RULES = (
    *("cfg()", "interval(low=0.3, high=3)", "ramp(shape='cosine')", "apg(eta=0)", "cfg_zero(zero_steps=1)"),
    *("rescale(phi=0.7)", "threshold(percentile=95)", "conditional()"),
)
OFFERED_SAMPLERS = ("dpmpp_2m_sde()", "dpmpp_2m()", "unipc()", "ddim()", "ancestral(v=0.3)", "heun()")
OFFERED_GRIDS = ("edm()", "schedule()", "uniform(logsnr_min=-10, logsnr_max=10)", "flow()")
MAX_W, MOST_LEVELS, MAX_PER_LABEL = 8, 64, 8
FIRST_LABELS = 5
FONT = ["system-ui", "sans-serif"]  # of the system: others are loaded from the network


def make_page(model: Model, workdir: str | Place) -> Any:
    """Returns the page as gradio's Blocks. Raises UsageError for a model whose samples are not images."""
    import gradio as gr

    if not model.is_image:
        raise UsageError(
            "the demo shows images; the samples of this run are points or latents: use cfgjax sample, or Model.sample"
        )
    if model.low_res_shape is not None or model.own_inputs:
        raise UsageError(
            "the demo needs a network whose only condition is the label; this one takes others: use Model.sample"
        )
    names = [short_name(label, model.classes) for label in range(model.num_classes)]
    labels = list(zip(names, range(model.num_classes), strict=True))

    def draw(shown: list[int], per_label: int, seed: int, two: bool, *values: Any) -> list[Any]:
        """Returns the pictures, the trajectories, the command and the Python lines of one or two settings."""
        try:
            settings = [values[:5], values[5:]][: 1 + two]
            choices = [as_choice(model, shown, per_label, seed, *setting) for setting in settings]
            drawn = [choice.pictures(model) for choice in choices]
        except (UsageError, ArithmeticError) as e:
            raise gr.Error(one_line(e), duration=None, print_exception=False) from None
        pictures, levels = (list(column) for column in zip(*drawn, strict=True))
        hidden = [gr.update(visible=False)] * (2 - len(drawn))
        show = lambda found: [gr.update(value=picture, visible=True) for picture in found] + hidden
        code = [
            "\n".join(choice.command(workdir) for choice in choices),
            "\n\n".join(choice.python(workdir) for choice in choices),
        ]
        return [*show(pictures), *show(levels), *code]

    with gr.Blocks(title="cfgjax", analytics_enabled=False) as page:
        gr.Markdown(f"# Classifier-free guidance\n{one_line(repr(model))}")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                first = list(range(min(FIRST_LABELS, model.num_classes)))
                shown = gr.Dropdown(labels, value=first, multiselect=True, label="classes")
                with gr.Row():
                    per_label = gr.Slider(1, MAX_PER_LABEL, 4, step=1, label="samples of each")
                    seed = gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="seed")
                one = setting_inputs(model, "", 1.0)
                two = gr.Checkbox(False, label="compare with a second setting")
                with gr.Group(visible=False) as group:
                    other = setting_inputs(model, "second: ", 0.0)
            with gr.Column(scale=2):
                with gr.Row():
                    pictures = [gr.Image(format="png", interactive=False, show_label=False) for _ in range(2)]
                with gr.Accordion("trajectory: the prediction x̃ at each level, from noise to image", open=False):
                    levels = [gr.Image(format="png", interactive=False, show_label=False) for _ in range(2)]
                with gr.Accordion("the same from the command line and from Python", open=True):
                    shared: dict[str, Any] = {"wrap_lines": True, "interactive": False, "lines": 1, "max_lines": 12}
                    code = [
                        gr.Code(language="shell", label="command", **shared),
                        gr.Code(language="python", label="Python", **shared),
                    ]
        inputs, outputs = [shown, per_label, seed, two, *one, *other], [*pictures, *levels, *code]
        two.change(lambda on: gr.update(visible=on), two, group, show_progress="hidden")
        triggers = [component.change for component in inputs] + [page.load]
        gr.on(triggers, draw, inputs, outputs, trigger_mode="always_last", show_progress="minimal", api_name="draw")
    return page


def setting_inputs(model: Model, prefix: str, weight: float) -> list[Any]:
    """Returns the inputs of one setting: w (at first `weight`), rule, sampler, number of steps, grid."""
    import gradio as gr

    options = model.options
    why = None if model.has_null_label else "fixed at 0: the network was trained without dropped labels"
    w = gr.Slider(
        -1,
        MAX_W,
        weight if model.has_null_label else 0.0,
        step=0.05,
        label=f"{prefix}guidance weight w",
        info=why or "−1 is unconditional, 0 conditional; more is more typical and less diverse",
        interactive=model.has_null_label,
    )
    rules = OFFERED_RULES if model.has_null_label else ("conditional()",)
    choose = lambda known, value, label: gr.Dropdown(
        list(dict.fromkeys([value, *known])), value=value, allow_custom_value=True, label=f"{prefix}{label}"
    )
    return [
        w,
        choose(rules, rules[0], "rule"),
        choose(OFFERED_SAMPLERS, str(options.sampler), "sampler"),
        gr.Slider(2, MOST_LEVELS, default_steps(model), step=1, label=f"{prefix}levels T"),
        choose(OFFERED_GRIDS, str(options.grid), "grid"),
    ]


def default_steps(model: Model) -> int:
    """Returns the number of levels at the start: that of the run, if the slider has it."""
    steps = model.options.num_steps
    return steps if isinstance(steps, int) and steps <= MOST_LEVELS else MOST_LEVELS


def as_choice(
    model: Model,
    labels: list[int],
    per_label: int,
    seed: int | None,
    w: float,
    rule: str,
    sampler: str,
    num_steps: int,
    grid: str,
) -> DemoChoice:
    """Returns the `DemoChoice` of the inputs. An empty seed is 0."""
    weight = float(w) if model.has_null_label else 0.0
    return DemoChoice(tuple(labels), int(per_label), weight, rule, sampler, int(num_steps), grid, int(seed or 0))
