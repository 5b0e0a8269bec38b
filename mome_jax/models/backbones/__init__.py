"""The backbones by name: image (B, D, H, W, C_in) -> pyramid of features, finest first.

Each has `num_scales` (L) and `stride` (of the coarsest scale); scale l has stride 2^l.
"""

import flax.linen as nn
import jax.numpy as jnp

from mome_jax.errors import ConfigError, suggest
from mome_jax.models.backbones import resenc_unet, swin_unetr, unet

BACKBONES = {
  'unet': (unet.UNet, unet.SIZES),
  'swin_unetr': (swin_unetr.SwinUNETR, swin_unetr.SIZES),
  'resenc_unet': (resenc_unet.ResEncUNet, resenc_unet.SIZES),
}


def build_backbone(config, *, remat: bool, dtype: jnp.dtype) -> nn.Module:
  """The backbone that `config.model.backbone` describes.

  Args:
    config: mapping with `name` (a key of `BACKBONES`), `size` (one of its sizes), and options of
      that backbone: `space_to_depth`, and for swin_unetr `merging`.
    remat: whether every stage recomputes its inner values in the backward pass.
    dtype: of the features.

  Raises:
    ConfigError: for a value that names nothing.
  """
  options = dict(config)
  name, size = options.pop('name'), options.pop('size')
  if name not in BACKBONES:
    raise ConfigError(f'model.backbone.name is {name!r}; {suggest(name, BACKBONES)}')
  module, sizes = BACKBONES[name]
  if size not in sizes:
    raise ConfigError(f'model.backbone.size is {size!r}; {suggest(size, sizes)}')
  known = {'space_to_depth', 'merging'} & module.__dataclass_fields__.keys()
  unknown = options.keys() - known
  if unknown:
    raise ConfigError(
      f'model.backbone.{", ".join(sorted(unknown))}: {name} has the options '
      f'{", ".join(sorted(known))}'
    )
  return module(**sizes[size], **options, remat=remat, dtype=dtype)
