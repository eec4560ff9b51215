"""The networks, in Flax linen. Only this folder uses Flax, and it does not depend on schedules or guidance.

A denoiser is called as `net.apply({"params": params}, z [B, …], time float32 [B], label int32 [B], train=…)` and
returns ε, or what its parametrisation takes, float32 with z's shape (twice the channels with learned variance). With
the parametrisation edm(data_std=…), z is scaled to unit variance first. The null label is `num_classes`. A denoiser
that takes more than the label has a method `condition`, see `models.network_inputs`.
A classifier of clean images is called as `net.apply({"params": params}, x [B, …], train=…)` and returns a dict of
logits, features and spatial features. A classifier of noisy images is called as
`net.apply({"params": params}, z [B, …], time, train=…)` and returns logits.
"""

from cfgjax.nets.classifier import ConvNet, NoisyClassifier
from cfgjax.nets.mlp import MLP
from cfgjax.nets.unet import UNet

NETS = {"unet": UNet, "mlp": MLP}
CLASSIFIERS = {"convnet": ConvNet}
NOISY_CLASSIFIERS = {"noisy_classifier": NoisyClassifier}
