"""Draws docs/guidance/strips/: what each rule and each sampler draws from the same noise, of a run on images.

python benchmarks/strips.py --workdir=runs/fashion_mnist_small --weak=runs/fashion_mnist_small@500 \
    --guide=runs/fashion_mnist_noisy_classifier     # 10 minutes

A strip has an image for each of the first ten classes, in two lines with different noise. There is none of `channels`,
which does not change images of one channel.
"""

import json
import sys
from pathlib import Path

import harness
from absl import flags

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "guidance" / "strips"
ABOUT = (
    "A strip has two lines, and each line one sample of every class of Fashion-MNIST. The samples were drawn with the "
    "network of `experiments/fashion_mnist_small.py` after {step:,} steps. All strips but that of `tilted()` start "
    "from the same noise."
)
CLASSES, LINES, ZOOM = 10, 2, 2
GRID = "edm()"
SAMPLER, LEVELS, FEW_LEVELS = "dpmpp_2m()", 32, 6

RULES = {  # name of the strip: (rule, w)
    "conditional": ("conditional()", 0.0),
    "cfg": ("cfg()", 3.0),
    "interval": ("interval(low=0.2, high=3)", 3.0),
    "ramp": ("ramp(shape='cosine')", 3.0),
    "table": ("table(logsnr=(-6, 0, 6), factor=(0, 1.5, 0.5))", 3.0),
    "rescale": ("rescale(phi=0.7)", 3.0),
    "threshold": ("threshold(percentile=95)", 3.0),
    "apg": ("apg(eta=0)", 3.0),
    "cfg_plus_plus": ("cfg_plus_plus()", -0.7),
    "cfg_zero": ("cfg_zero(zero_steps=1)", 3.0),
    "autoguidance": ("autoguidance()", 3.0),
    "compose": ("compose(labels=(7,), scales=(0.5,))", 3.0),
    "negative": ("negative(label=7)", 3.0),
    "pag": ("pag()", 3.0),
    "seg": ("seg()", 3.0),
    "classifier": ("classifier(conditional(), scale=3)", 0.0),
}
SAMPLERS = {  # name of the strip: (sampler, number of levels) with about as many network evaluations
    "ancestral": ("ancestral(v=0.3)", FEW_LEVELS),
    "ddim": ("ddim()", FEW_LEVELS),
    "heun": ("heun()", FEW_LEVELS // 2 + 1),
    "dpmpp_2m": ("dpmpp_2m()", FEW_LEVELS),
    "dpmpp_2m_sde": ("dpmpp_2m_sde()", FEW_LEVELS),
    "unipc": ("unipc()", FEW_LEVELS),
    "tilted": ("tilted(particles=8)", LEVELS),
}


def draw_strips(workdir, weak, guide, names):
    """Writes the strips of the names, or of all if there are none."""
    import numpy as np
    from PIL import Image

    import cfgjax
    from cfgjax.diffusion import guidance, samplers
    from cfgjax.diffusion.specs import parse
    from cfgjax.models.binding import filled, with_weak
    from cfgjax.models.groups import group_size
    from cfgjax.models.loading import load_guide, load_weak

    model = cfgjax.load(workdir)
    weaker, noisy = load_weak(weak, model.settings, model.mesh).model, load_guide(guide)
    labels = np.tile(np.arange(CLASSES), LINES)
    strips = {name: (rule, w, SAMPLER, LEVELS) for name, (rule, w) in RULES.items()}
    strips |= {name: ("cfg()", 1.0, sampler, levels) for name, (sampler, levels) in SAMPLERS.items()}
    FOLDER.mkdir(parents=True, exist_ok=True)
    captions = json.loads((FOLDER / "strips.json").read_text())["captions"] if names else {}
    for name, (text, w, sampler, levels) in strips.items():
        if names and name not in names:
            continue
        rule = filled(with_weak(parse(text, guidance.RULES, "rule"), weaker), noisy, None)
        sampler = "ddim()" if name == "cfg_plus_plus" else sampler
        size = group_size(parse(sampler, samplers.SAMPLERS, "sampler"))
        groups = np.repeat(labels, size)
        images = model.sample(groups, w, rule=rule, sampler=sampler, grid=GRID, num_steps=levels)[::size]
        height, width = images.shape[1:3]
        tiles = images.reshape(LINES, CLASSES, *images.shape[1:]).swapaxes(1, 2)
        strip = tiles.reshape(LINES * height, CLASSES * width, -1).squeeze()
        Image.fromarray(strip).resize((ZOOM * strip.shape[1], ZOOM * strip.shape[0]), 0).save(
            FOLDER / f"{name}.png", optimize=True
        )
        captions[name] = f"`{text}`, w = {w:g}, `{sampler}`, {levels} levels"
        print(f"{name}: {captions[name]}", flush=True)
    found = {"about": ABOUT.format(step=model.step), "captions": captions}
    (FOLDER / "strips.json").write_text(json.dumps(found, indent=1) + "\n")


def main(argv):
    """Runs `strips.py FLAGS`. Returns the exit code."""
    given = flags.FlagValues()
    flags.DEFINE_string("workdir", "runs/fashion_mnist_small", "Folder of the run.", flag_values=given)
    flags.DEFINE_string(
        "weak", "runs/fashion_mnist_small@500", "Run of the weak model: WORKDIR[@STEP][,ema=RATE].", flag_values=given
    )
    flags.DEFINE_string(
        "guide", "runs/fashion_mnist_noisy_classifier", "Run of a classifier of noisy images.", flag_values=given
    )
    flags.DEFINE_list("only", [], "Strips to draw; by default all.", flag_values=given)
    return harness.command(
        argv, __doc__, given, lambda: draw_strips(given.workdir, given.weak, given.guide, given.only)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
