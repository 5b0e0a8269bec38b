"""How each peer is built and trained, with the variants to choose from on `openkbp_tune`."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from monai.networks.nets import DynUNet, SwinUNETR

from mome_jax.training import config_flag


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A network and its training.

  Attributes:
    build: (channels of the image, classes) -> network.
    patch: (3,) voxels, of training patches and of the windows.
    batch_size: patches a step.
    optimizer: (parameters) -> optimizer with its highest learning rate.
    decay: progress in [0, 1] -> factor of the learning rate after the warm-up.
    warmup: share of the training in which the learning rate rises from zero.
    clip_norm: bound on the norm of all gradients.
    ema_decay: of the average of the parameters that is scored; 0 scores the last ones.
    log_dice: -log(Dice) in the loss in place of 1 - Dice.
  """

  build: Callable[[int, int], torch.nn.Module]
  patch: tuple[int, int, int]
  batch_size: int
  optimizer: Callable[[Any], torch.optim.Optimizer]
  decay: Callable[[float], float]
  warmup: float
  clip_norm: float
  ema_decay: float
  log_dice: bool


def dynunet(channels: int, classes: int, *, filters: tuple[int, ...], heads: int) -> DynUNet:
  """nnU-Net's plain U-Net: strided convolutions, instance norm, leaky relu, deep supervision.

  Args:
    channels: of the image.
    classes: K.
    filters: of each stage; every stage halves the grid of the one before.
    heads: coarser stages with a supervised output of their own.
  """
  strides = (1, *(2 for _ in filters[1:]))
  return DynUNet(
    spatial_dims=3,
    in_channels=channels,
    out_channels=classes,
    kernel_size=[3] * len(filters),
    strides=strides,
    upsample_kernel_size=strides[1:],
    filters=filters,
    deep_supervision=True,
    deep_supr_num=heads,
  )


def sgd(parameters) -> torch.optim.Optimizer:
  """nnU-Net's."""
  return torch.optim.SGD(parameters, 1e-2, momentum=0.99, nesterov=True, weight_decay=3e-5)


def adamw(parameters, *, rate: float) -> torch.optim.Optimizer:
  """With the weight decay of MoME."""
  return torch.optim.AdamW(parameters, rate, weight_decay=1e-5)


def poly(progress: float) -> float:
  """nnU-Net's."""
  return (1 - progress) ** 0.9


def cosine(progress: float) -> float:
  """From 1 to 0."""
  return (1 + math.cos(math.pi * progress)) / 2


_DYNUNET = Recipe(
  build=functools.partial(dynunet, filters=(16, 32, 64, 128), heads=2),
  patch=(40, 40, 40),
  batch_size=1,
  optimizer=functools.partial(adamw, rate=3e-3),
  decay=cosine,
  warmup=0.01,
  clip_norm=12.0,
  ema_decay=0.995,
  log_dice=True,
)
_SWINUNETR = Recipe(
  build=functools.partial(SwinUNETR, feature_size=24),
  patch=(64, 64, 64),
  batch_size=1,
  optimizer=functools.partial(adamw, rate=1e-3),
  decay=cosine,
  warmup=0.05,
  clip_norm=1.0,
  ema_decay=0.995,
  log_dice=True,
)
_NNUNET = {'optimizer': sgd, 'decay': poly, 'warmup': 0.0, 'log_dice': False}
_WIDE = functools.partial(dynunet, filters=(32, 64, 128, 256), heads=2)
_NARROW = functools.partial(SwinUNETR, feature_size=12)
RECIPES = {
  'dynunet': _DYNUNET,
  'dynunet_sgd': dataclasses.replace(_DYNUNET, **_NNUNET),
  'dynunet_wide': dataclasses.replace(_DYNUNET, build=_WIDE),
  'swinunetr': _SWINUNETR,
  'swinunetr_flat': dataclasses.replace(_SWINUNETR, patch=(64, 32, 64)),
  'swinunetr_narrow': dataclasses.replace(_SWINUNETR, build=_NARROW),
}


EXPERIMENT = 'openkbp_cpu'  # whose data is taken by default, and was always before it was noted


def make_config(
  peer: str, experiment: str = EXPERIMENT, *, data_dir: str = '', source: str = '', seed: int = 0
):
  """An experiment, which it names, with the patch, batch and windows of a peer.

  Args:
    peer: of `RECIPES`.
    experiment: what `--config` takes.
    data_dir: of the prepared sources.
    source: the only one; '' takes those of the experiment.
    seed: of training.
  """
  config, recipe = config_flag.load(experiment).unlock(), RECIPES[peer]
  config.experiment, config.data_dir, config.seed = experiment, data_dir, seed
  config.data.sources = (source,) if source else config.data.sources
  config.data.patch = config.evaluation.window = recipe.patch
  config.train.batch_size = recipe.batch_size
  return config
