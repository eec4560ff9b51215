"""The ablations of "Diffusion Models Beat GANs" (arXiv:2105.05233), on ImageNet 128×128.

cfgjax sweep --sweep=experiments/sweeps/adm_ablation.py --out=runs/adm_ablation \
    --launcher=slurm --time=7-00:00:00 --gpus_per_node=8

BASE is an experiment, FILE or FILE:ARGUMENT. `get_sweep()` lists its runs as (name, {"config.key": value}). The rows
are those of the paper's tables 1 (config.train.num_steps 1,200,000; FID also after 700,000) and 2 (700,000), in their
order. The published results are under "ablations" in cfgjax/evaluation/report/targets/adm_imagenet256.json; `cfgjax
compare` does not show them. Not measured here.
"""

BASE = "adm:128"

TABLE_1 = {
    "config.model.channels": 160,
    "config.model.depth": 2,
    "config.model.num_heads": 1,
    "config.model.attention_resolutions": (16,),
    "config.model.resblock_resample": False,
    "config.model.rescale": False,
    "config.train.num_steps": 1200000,
}
TABLE_2 = {
    "config.model.channels": 128,
    "config.model.depth": 2,
    "config.model.attention_resolutions": (32, 16, 8),
    "config.model.resblock_resample": True,
    "config.model.rescale": False,
    "config.train.num_steps": 700000,
}


def get_sweep():
    """Returns [(name, {"config.key": value})], the rows of both tables."""
    all_sizes = {"config.model.attention_resolutions": (32, 16, 8)}
    biggan = {"config.model.resblock_resample": True}
    four_heads = {"config.model.num_heads": 4}
    by_channels = {"config.model.num_heads": None}
    return [
        ("base", TABLE_1),
        ("deep", TABLE_1 | {"config.model.channels": 128, "config.model.depth": 4}),
        ("heads_4", TABLE_1 | four_heads),
        ("attention_32_16_8", TABLE_1 | all_sizes),
        ("biggan", TABLE_1 | biggan),
        ("rescale", TABLE_1 | {"config.model.rescale": True}),
        ("all_but_rescale", TABLE_1 | four_heads | all_sizes | biggan),
        ("table_2_heads_1", TABLE_2 | {"config.model.num_heads": 1}),
        ("table_2_heads_2", TABLE_2 | {"config.model.num_heads": 2}),
        ("table_2_heads_4", TABLE_2 | {"config.model.num_heads": 4}),
        ("table_2_heads_8", TABLE_2 | {"config.model.num_heads": 8}),
        ("table_2_head_channels_32", TABLE_2 | by_channels | {"config.model.head_channels": 32}),
        ("table_2_head_channels_64", TABLE_2 | by_channels | {"config.model.head_channels": 64}),
        ("table_2_head_channels_128", TABLE_2 | by_channels | {"config.model.head_channels": 128}),
    ]
