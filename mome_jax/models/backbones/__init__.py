"""The backbones by name: image (B, D, H, W, C_in) -> pyramid of features, finest first.

Each has `num_scales` (L) and `stride` (of the coarsest scale); scale l has stride 2^l.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from mome_jax.errors import ConfigError, suggest
from mome_jax.models.backbones import resenc_unet, swin_unetr, unet


class Backbone(NamedTuple):
  """A backbone that a config can name.

  Attributes:
    module: made with one of the sizes, the options, `remat` and `dtype`.
    sizes: name -> the module's fields that make the size.
    options: further fields that a config may set.
  """

  module: Callable[..., nn.Module]
  sizes: Mapping[str, Mapping[str, Any]]
  options: tuple[str, ...] = ()


BACKBONES: dict[str, Backbone] = {
  'unet': Backbone(unet.UNet, unet.SIZES),
  'swin_unetr': Backbone(swin_unetr.SwinUNETR, swin_unetr.SIZES, ('merging',)),
  'resenc_unet': Backbone(resenc_unet.ResEncUNet, resenc_unet.SIZES),
}


def build_backbone(config: Mapping[str, Any], *, remat: bool, dtype: jnp.dtype) -> nn.Module:
  """The backbone that `config.model.backbone` describes.

  Args:
    config: mapping with `name` (a key of `BACKBONES`), `size` (one of its sizes), and options of
      that backbone: for swin_unetr `merging`.
    remat: whether every stage recomputes its inner values in the backward pass.
    dtype: of the features.

  Raises:
    ConfigError: for a value that names nothing.
  """
  options = dict(config)
  name, size = options.pop('name'), options.pop('size')
  if name not in BACKBONES:
    raise ConfigError(f'model.backbone.name is {name!r}; {suggest(name, BACKBONES)}')
  backbone = BACKBONES[name]
  if size not in backbone.sizes:
    raise ConfigError(f'model.backbone.size is {size!r}; {suggest(size, backbone.sizes)}')
  unknown = sorted(options.keys() - set(backbone.options))
  if unknown:
    raise ConfigError(
      f'model.backbone.{", ".join(unknown)}: {name} has the options '
      f'{", ".join(("name", "size", *backbone.options))}'
    )
  return backbone.module(**backbone.sizes[size], **options, remat=remat, dtype=dtype)
