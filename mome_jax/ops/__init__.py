"""Operations of 3D networks: each plain, beside its fast lowering or gradient for a CPU.

`NAME_plain` is what `NAME` computes, as XLA lowers it; `tests/mome_jax/ops` shows that both have
the same values and gradients. Models use the names below and need to know nothing of lowerings.
"""

from mome_jax.ops.conv3d import Conv3D, DownConv3D, UpConv3D
from mome_jax.ops.dense import Dense, add_bias
from mome_jax.ops.fusion import fuse, mean_of_scales, scale_weights
from mome_jax.ops.norm import GroupNorm, LayerNorm
from mome_jax.ops.precision import EXACT, at_least_float32, exact, precision_of
from mome_jax.ops.resize import max_pool, mean_pool, upsample

__all__ = [
  'EXACT',
  'Conv3D',
  'Dense',
  'DownConv3D',
  'GroupNorm',
  'LayerNorm',
  'UpConv3D',
  'add_bias',
  'at_least_float32',
  'exact',
  'fuse',
  'max_pool',
  'mean_of_scales',
  'mean_pool',
  'precision_of',
  'scale_weights',
  'upsample',
]
