"""Builds the config of a run whose network was trained elsewhere."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from cfgjax.diffusion.samplers import ancestral
from cfgjax.nets import NETS, NOISY_CLASSIFIERS, NoisyClassifier, UNet

FIXED = ("num_classes", "out_channels", "parent", "name")  # fields of a network that config.model does not have
MOST_LABELS = 10  # in a grid of samples


def run_config(
    net: UNet | NoisyClassifier,
    *,
    image_shape: Sequence[int],
    num_classes: int,
    betas: str,
    num_timesteps: int,
    data_path: str,
    low_res_size: int | None = None,
    v: float = 0.0,
    parametrisation: str = "eps",
) -> dict[str, Any]:
    """Returns the config, a dict with every section, that builds net and samples as ADM does: 250 steps, random labels.

    image_shape: [H, W, C]. num_classes: of the data. data_path: .npz of the training data, which need not exist.
    low_res_size: of an upsampler. v: of the sampler, if the variance is not learned. parametrisation: what the network
    predicts. The sections optimizer, train and
    checkpoint only complete the format: they do not describe how the network was trained.
    """
    config: dict[str, Any] = dict(
        seed=0,
        data=dict(
            source="npz",
            path=data_path,
            split="all",
            num_classes=num_classes,
            image_shape=tuple(image_shape),
            random_flip=True,
            random_crop=1.0,
            low_res_size=low_res_size,
        ),
        model=model_section(net),
        diffusion=dict(betas=betas, num_timesteps=num_timesteps),
        optimizer=dict(
            name="adamw",
            learning_rate=1e-4,
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=0.0,
            schedule="constant",
            warmup_steps=0,
            decay_steps=None,
            clip_norm=None,
        ),
        ema=dict(rates=(), warmup=False),
        train=dict(
            batch_size=256,
            num_steps=1,
            log_every_steps=1,
            steps_per_dispatch=1,
            accumulate_steps=1,
            max_skipped_in_row=10,
            init_from=None,
        ),
        checkpoint=dict(every_steps=1, keep_last=1, keep_every_steps=None),
        mesh=dict(data=-1, fsdp=1, slices=1),
        cluster=dict(timeout_seconds=60.0, start_timeout_seconds=300.0),
        log=dict(writers=("tensorboard",), project="cfgjax"),
        storage=dict(retry_seconds=600.0, lease_seconds=30.0),
    )
    if isinstance(net, NoisyClassifier):
        config["data"]["split"] = "train"
        return config | dict(evaluate=dict(every_steps=1))
    if parametrisation != "eps":
        config["diffusion"]["parametrisation"] = parametrisation
    learned_variance = net.out_channels == 2 * image_shape[-1]
    config["diffusion"] |= dict(
        p_uncond=0.0, learned_variance=learned_variance, bound_weight=0.001, time_sampler="uniform"
    )
    return config | generation(num_classes, None if learned_variance else v)


def model_section(net: UNet | NoisyClassifier) -> dict[str, Any]:
    """Returns config.model of a network."""
    name = next(name for name, network in (NETS | NOISY_CLASSIFIERS).items() if type(net) is network)
    fields = [field.name for field in dataclasses.fields(net) if field.name not in FIXED]
    return {"name": name, **{field: getattr(net, field) for field in fields}}


def generation(num_classes: int, v: float | None) -> dict[str, dict[str, Any]]:
    """Returns the sections of a network that generates samples. v: of the sampler, None if the variance is learned."""
    return dict(
        sample=dict(
            every_steps=10_000,
            labels=tuple(range(min(num_classes, MOST_LABELS))),
            guidance=(0.0,),
            per_cell=4,
            num_steps=250,
            sampler=repr(ancestral(v=v)),
        ),
        evaluate=dict(
            guidance=(0.0,),
            num_samples=50_000,
            batch_size=250,
            label_policy="random",
            features="inception",
            classifier=None,
            reference=None,
            every_steps=None,
            every_num_samples=5_000,
            every_guidance=(0.0,),
        ),
    )
