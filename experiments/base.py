"""The reference of the configuration: every key of every section, its meaning and its default.

cfgjax train --config=experiments/base.py --print_config

An experiment gives only the values that differ. It may be in any folder with a copy of this file:

    from .base import denoiser

    def get_config():
        return denoiser(data=dict(source="npz", path="mine.npz", num_classes=3, image_shape=(32, 32, 3)))

When a run resumes, some values may change: cfgjax.runs.changes has the rule of every key.

The config has the keys that its data source, network and process take, and every other key that is given a value.
`placeholder(int)` is None and accepts an integer. `FieldReference(64)` is 64 and accepts None.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from cfgjax.base.errors import choose
from cfgjax.runs.sample_options import defaults


def reference():
    """Returns every key of every section with its default."""
    return dict(
        seed=0,  # seed of the initial parameters, the batches and their noise, 0 to 2³² − 1
        data=dict(
            source="prepared",  # "prepared" (cfgjax prepare), "folder", "tfds", "npz", "digits" or "mixture"
            path="data/images",  # file or folder of the data; for "tfds" also the name of a data set
            kind="image",  # "image", or "latent" for unbounded arrays (height, width, channels), not shown as images
            split="all",  # "all", "train" or "holdout" (every sixth example)
            num_classes=1000,  # number K of labels 0 … K − 1
            image_shape=(64, 64, 3),  # (height, width, channels) in pixels, or (dimensions,) of points
            random_flip=True,  # whether training mirrors half of the images
            random_crop=1.0,  # smallest crop in training, as a share of the side, in (0, 1]; 1 crops nothing
            low_res_size=placeholder(int),  # height in pixels of an upsampler's input; None for other networks
            crop=FieldReference("adm"),  # "adm", "lanczos", "area" or "pad"; None accepts any prepared data set
            class_order="name",  # order of a folder's classes: sorted as text ("name") or as numbers ("numeric")
            data_dir=placeholder(str),  # where TFDS keeps its data sets; None for its own default
            tfds_split="train",  # split of the TFDS data set; data.split selects a part of it
            num_workers=16,  # processes that decode images; 0 decodes in the training process
            worker_timeout_seconds=600.0,  # training fails after this many seconds without a batch, at least 1
            means=((0.0, 0.0),),  # mean of each Gaussian of a mixture, one per class
            stds=(1.0,),  # standard deviation of each Gaussian, above 0
            weights=(1.0,),  # probability of each Gaussian; they sum to 1
            num_examples=30000,  # points drawn from the mixture
            seed=0,  # seed of the mixture's points
        ),
        model=dict(
            name="unet",  # "unet" or "mlp"; for classifiers "convnet" or "noisy_classifier"
            channels=128,  # width of the first level
            multipliers=(1, 2, 3, 4),  # width of each level as a multiple of channels; each level halves the image
            depth=2,  # residual blocks per level; hidden layers of an MLP
            attention_resolutions=(32, 16, 8),  # heights in pixels of the maps that get attention; () for none
            num_heads=placeholder(int),  # attention heads; None if head_channels sets them
            head_channels=FieldReference(64),  # channels per attention head; None if num_heads is set
            legacy_attention_order=True,  # layout of the projection to queries, keys and values; True groups it by head
            scale_shift=True,  # whether the embedding scales and shifts the normalised map (AdaGN); False adds it
            resblock_resample=True,  # whether residual blocks change the resolution (BigGAN)
            learned_resample=True,  # whether other resampling is a convolution; False averages and repeats pixels
            rescale=False,  # whether residual sums are divided by √2
            dropout=0.0,  # probability in [0, 1)
            conditional=True,  # whether the network takes the label
            null_label=True,  # whether it also takes "no condition", which classifier-free guidance needs
            low_res=False,  # whether the network also takes a smaller image, as an upsampler does
            low_res_noise=False,  # whether noise is added to that image; needs diffusion.low_res_logsnr_min
            dtype="bfloat16",  # dtype of convolutions and matrix products: "float32" or "bfloat16"
            fused_attention=True,  # whether attention is one operation, cuDNN's on GPUs in bfloat16
            remat="none",  # what the backward pass recomputes to save memory: "none", "convolutions" or "blocks"
            pool="attention",  # pooling of a noisy classifier: "attention", "adaptive", "spatial" or "spatial_v2"
            num_features=128,  # size of the feature layer of a convnet, before the logits
            width=128,  # units per layer of an MLP
        ),
        diffusion=dict(
            schedule="cosine",  # continuous λ = log(α²/σ²): "cosine", "uniform", "normal(…)" or "logit_normal(…)"
            logsnr_min=-20.0,  # smallest λ, the noisiest level
            logsnr_max=20.0,  # largest λ, the cleanest level
            betas="linear",  # betas of discrete time, instead of the three keys above: "linear" or "cosine"
            num_timesteps=1000,  # number of discrete timesteps, at least 2
            p_uncond=0.1,  # probability in [0, 1] of training on an example without its label
            parametrisation="eps",  # what the network predicts: "eps", "x", "v", "flow" or "edm(data_std=…)"
            weighting="eps",  # loss: unweighted in "eps", "x", "v" or "flow"; or "edm(…)", "min_snr(…)" or "sigmoid(…)"
            learned_variance=False,  # whether the network also predicts the reverse variance (hybrid loss)
            bound_weight=0.001,  # weight of the variational bound in the hybrid loss
            bound_steps=1000,  # number of levels of that bound in continuous λ, at least 2
            time_sampler="uniform",  # how training levels are drawn: "uniform" or "second_moment" (by their loss)
            low_res_logsnr_min=placeholder(float),  # smallest λ of an upsampler's input; None without low_res_noise
        ),
        optimizer=dict(
            name="adamw",  # "adamw" or "adam"
            learning_rate=1e-4,  # learning rate after the warm-up
            b1=0.9,  # decay of Adam's first moment, in [0, 1)
            b2=0.999,  # decay of Adam's second moment, in [0, 1)
            eps=1e-8,  # added to the root of the second moment
            weight_decay=0.0,  # decoupled weight decay, of adamw only
            schedule="constant",  # learning rate after the warm-up: "constant", "linear" or "cosine"
            warmup_steps=0,  # steps in which the learning rate rises from 0
            decay_steps=placeholder(int),  # step at which "linear" and "cosine" reach 0; None for "constant"
            clip_norm=placeholder(float),  # largest norm of the gradient; None does not clip
        ),
        ema=dict(
            rates=(0.9999,),  # decay of each average of the parameters; sampling uses the first; () keeps none
            warmup=True,  # whether the rates start lower, at (1 + n) / (10 + n) after n steps
            widths=(),  # σ_rel of power-function averages, such as (0.05, 0.1), from which others can be made later
            snapshot_every_steps=placeholder(int),  # steps between their snapshots; None: checkpoint.every_steps
        ),
        train=dict(
            batch_size=256,  # examples per step over all devices
            num_steps=500000,  # optimizer steps
            log_every_steps=100,  # steps between logged metrics
            steps_per_dispatch=1,  # steps per call of the compiled program; more hides its overhead for small networks
            accumulate_steps=1,  # number of parts in which a batch is computed, to save memory
            max_skipped_in_row=10,  # training fails after so many consecutive steps with a non-finite loss or gradient
            init_from=placeholder(str),  # workdir whose averaged parameters training starts from; None for random ones
        ),
        checkpoint=dict(
            every_steps=5000,  # steps between checkpoints
            keep_last=3,  # number of newest checkpoints that are retained
            keep_every_steps=placeholder(int),  # also retains checkpoints at multiples of this; None: no others
        ),
        sample=dict(
            defaults("sample"),  # a key for every option of `SampleOptions`, also those not listed below
            every_steps=10000,  # steps between sample grids during training
            labels=tuple(range(10)),  # labels, the rows of the grids; in a mixture's figure, its classes
            guidance=(-1.0, 0.0, 1.0, 3.0),  # weights w, the columns of the grids; at -1 the label has no effect
            per_cell=4,  # samples per label and w
            rule="cfg()",  # guidance rule
            sampler="dpmpp_2m_sde()",  # sampler, such as "ddim()"; "ancestral()" uses a learned variance
            num_steps=16,  # number of sampling levels T; in discrete time also a spacing such as "ddim25" or "10+15+20"
            grid="edm()",  # spacing of the levels: "schedule()" as in training, "edm()", "uniform()" or "flow()"
            clip="consistent",  # clipping of x̃ of images to [−1, 1]: "consistent" (ε̃ follows x̃), "x_only" or "none"
            seed=0,  # seed of the noise, 0 to 2³² − 1
        ),
        evaluate=dict(
            defaults("evaluate"),  # the same options; None takes the value of config.sample
            guidance=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 3.0, 4.0),  # weights w to measure
            rule=placeholder(str),  # guidance rule; None takes that of config.sample
            sampler=placeholder(str),  # sampler; None takes that of config.sample
            num_steps=16,  # number of sampling levels T
            grid=placeholder(str),  # spacing of the levels; None takes that of config.sample
            clip=placeholder(str),  # clipping of x̃; None takes that of config.sample
            seed=placeholder(int),  # seed of the noise and the labels; None takes that of config.sample
            ema=placeholder(float),  # one of ema.rates, a width σ_rel, or 0 for no averaging; None takes the first
            label_policy="balanced",  # labels of the samples: "balanced" (each equally often) or "random"
            num_samples=50000,  # samples per w
            batch_size=250,  # samples per call on each device
            features="inception",  # feature network: "inception", "classifier" or "mixture" (the exact density)
            classifier=placeholder(str),  # workdir of a classifier, for features or accuracy; None for neither
            reference=placeholder(str),  # .npz of reference statistics; None computes them from the training data
            every_steps=placeholder(int),  # steps between evaluations during training; None for none
            every_num_samples=5000,  # samples per w of those evaluations
            every_guidance=(0.0,),  # weights w of those evaluations
        ),
        mesh=dict(
            data=-1,  # devices over which the batch is split; -1 for all remaining devices
            fsdp=1,  # devices over which batch and parameters are split; -1 for all remaining devices
            slices=1,  # number of TPU slices or groups of hosts, connected by a slower network
        ),
        cluster=dict(
            timeout_seconds=60.0,  # time within which a failed or frozen process is detected, at least 2
            start_timeout_seconds=300.0,  # seconds that processes wait for one another at the start, at least 1
        ),
        log=dict(
            writers=("tensorboard",),  # besides metrics.jsonl: "tensorboard", "wandb", "mlflow"
            project="cfgjax",  # project of Weights & Biases; experiment of MLflow
        ),
        storage=dict(  # for workdirs in buckets
            retry_seconds=600.0,  # seconds for which a server that does not answer is asked again, at least 1
            lease_seconds=30.0,  # time without a sign of life after which another process may take over, at least 3
        ),
    )


IMAGES = ("source", "split", "num_classes", "image_shape", "random_flip")
DECODED = (*IMAGES, "path", "crop", "num_workers", "worker_timeout_seconds")
SOURCES = {  # data source: keys of config.data
    "digits": IMAGES,
    "mixture": (*IMAGES, "means", "stds", "weights", "num_examples", "seed"),
    "npz": (*IMAGES, "path"),
    "prepared": DECODED,
    "folder": (*DECODED, "class_order"),
    "tfds": (*DECODED, "data_dir", "tfds_split"),
}
CONVNET = ("name", "channels", "multipliers", "depth", "dropout", "num_features")
ATTENTION = ("attention_resolutions", "num_heads", "head_channels", "legacy_attention_order", "fused_attention")
RESAMPLING = ("scale_shift", "resblock_resample", "learned_resample", "rescale")
ADM = ("name", "channels", "multipliers", "depth", "dropout", *ATTENTION, *RESAMPLING, "dtype", "remat")
NETWORKS = {  # network: keys of config.model
    "unet": (*ADM, "conditional", "null_label", "low_res", "low_res_noise"),
    "mlp": ("name", "width", "depth"),
    "convnet": CONVNET,
    "noisy_classifier": (*ADM, "pool"),
}
CONTINUOUS = ("schedule", "logsnr_min", "logsnr_max")
DISCRETE = ("betas", "num_timesteps")


def get_config():
    """Returns the defaults: a U-Net for a prepared data set."""
    return denoiser()


def denoiser(**given):
    """Returns the config of a diffusion model. given: the values that differ, {section: {key: value}}.

    If diffusion.betas or diffusion.num_timesteps is given, time is discrete, and the grid is "schedule()" by default.
    """
    check_names(given)
    model, diffusion = given.get("model", {}), given.get("diffusion", {})
    keys = [*process(diffusion), "p_uncond", "parametrisation", "weighting"]
    if model.get("name", "unet") == "unet":
        keys += ["learned_variance", "time_sampler"]
    if diffusion.get("learned_variance"):
        keys += ["bound_weight"] if keys[0] == "betas" else ["bound_weight", "bound_steps"]
    if model.get("low_res"):
        keys += ["low_res_logsnr_min"]
    if keys[0] == "betas":  # all levels of training are timesteps, of which num_steps may select some
        given = given | {"sample": {"grid": "schedule()"} | given.get("sample", {})}
    return config_of(given, "unet", {"diffusion": keys})


def classifier(**given):
    """Returns the config of a classifier of clean images, a feature network for evaluations."""
    check_names(given)
    return config_of(given, "convnet", {"evaluate": ["every_steps"], "diffusion": None, "sample": None})


def noisy_classifier(**given):
    """Returns the config of a classifier of noisy images, which guides a diffusion model."""
    check_names(given)
    diffusion = process(given.get("diffusion", {}))
    return config_of(given, "noisy_classifier", {"evaluate": ["every_steps"], "diffusion": diffusion, "sample": None})


def check_names(given):
    """Raises an error that names the first unknown section or key."""
    for section, values in given.items():
        keys = choose("config section", section, reference())
        if not isinstance(keys, dict):
            continue
        if not isinstance(values, dict | ConfigDict):
            raise TypeError(f"{section} is {values!r}; need dict(key=value)")
        for key in values:
            choose(f"key of config.{section}", key, keys)


def process(diffusion):
    """Returns the keys of discrete time if any of them is given, otherwise those of continuous λ."""
    return DISCRETE if set(DISCRETE) & set(diffusion) else CONTINUOUS


def config_of(given, network, keys):
    """Returns the reference with the given values, reduced to the keys of its source and network and to `keys`.

    network: the default of model.name. keys: {section: its keys, or None to leave the section out}.
    """
    config = ConfigDict(reference()).lock()
    config.model.name = network
    config.update(given)
    keys = {
        "data": choose("data source", config.data.source, SOURCES),
        "model": choose("network", config.model.name, NETWORKS),
        **keys,
    }
    with config.unlocked():
        for section, kept in keys.items():
            if kept is None:
                del config[section]
                continue
            for key in set(config[section]) - {*kept, *given.get(section, {})}:
                del config[section][key]
    return config
