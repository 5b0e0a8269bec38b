"""The Swin transformer encoder in 3D: attention in shifted windows, patch merging between stages.

Liu et al., ICCV 2021; the 3D form and its details are those of Hatamizadeh et al., "Swin UNETR",
2022, as published weights were trained with them.
"""

import functools
from collections.abc import Sequence
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mome_jax import ops

_Array = TypeVar('_Array', jax.Array, np.ndarray)

WINDOW = 7  # voxels along each axis
MASKED = -100.0  # added to the scores of voxels that the shift brought together from afar

# Offsets (i, j, k) of the eight neighbours that patch merging joins, in the order of the channels.
MERGING_ORDERS = {
  # Of the CLIP-Driven Universal Model, and of MONAI until January 2025 (its issue 8284): two
  # neighbours come twice, two never.
  'cum': ('000', '100', '010', '001', '101', '010', '001', '111'),
  'monai': ('000', '100', '010', '001', '110', '101', '011', '111'),
  'monai_v2': ('000', '001', '010', '011', '100', '101', '110', '111'),
}


@functools.cache
def position_index() -> np.ndarray:
  """(343, 343) int, row of the bias table for every query and key of a full window."""
  axes = np.meshgrid(*[np.arange(WINDOW)] * 3, indexing='ij')
  place = np.stack(axes).reshape(3, -1)
  d, h, w = place[:, :, None] - place[:, None, :] + WINDOW - 1
  return (d * (2 * WINDOW - 1) + h) * (2 * WINDOW - 1) + w


def windows_of(grid: Sequence[int], shifted: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Sides of a window on a grid, and the shift along each axis.

  An axis no longer than a window has one window, as long as the axis, and no shift.
  """
  window = tuple(min(n, WINDOW) for n in grid)
  return window, tuple(WINDOW // 2 if shifted and n > WINDOW else 0 for n in grid)


def shift_regions(grid: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> np.ndarray:
  """Which voxels of a window are neighbours after a shift: those of the same number.

  Returns (windows, n) int32, n voxels in a window. NOTE: not the (windows, n, n) scores that follow
  from it: for 48^3 voxels that constant would be 161 MB of the program, once for every block.
  """
  region = np.zeros(grid, np.int32)
  for axis, (n, size, step) in enumerate(zip(grid, window, shift, strict=True)):
    along = np.arange(n)
    label = np.where(along < n - size, 0, np.where(along < n - step, 1, 2)) if step else 0 * along
    region = region * 3 + np.expand_dims(label, [a for a in range(3) if a != axis])
  return np.asarray(partition(region[None, ..., None], window))[..., 0]


def partition(x: _Array, window: Sequence[int]) -> _Array:
  """(B, D, H, W, C) -> (B * windows, voxels of a window, C); the sides must divide."""
  b, *grid, c = x.shape
  split = [side for n, size in zip(grid, window, strict=True) for side in (n // size, size)]
  return x.reshape(b, *split, c).transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, np.prod(window), c)


def unite(windows: jax.Array, window: Sequence[int], grid: Sequence[int]) -> jax.Array:
  """The inverse of `partition`, for a grid (D, H, W)."""
  counts = [n // size for n, size in zip(grid, window, strict=True)]
  x = windows.reshape(-1, *counts, *window, windows.shape[-1])
  return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, *grid, windows.shape[-1])


class WindowAttention(nn.Module):
  """Self-attention among the n voxels of each window: (N, n, C) -> (N, n, C)."""

  heads: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, regions: np.ndarray | None) -> jax.Array:
    count, n, channels = x.shape
    width = channels // self.heads
    qkv = ops.Dense(3 * channels, dtype=self.dtype, name='qkv')(x)
    q, k, v = jnp.moveaxis(qkv.reshape(count, n, 3, self.heads, width), 2, 0)
    precise = ops.at_least_float32(self.dtype)
    product = functools.partial(jnp.einsum, precision=ops.precision_of(self.dtype))
    scores = product('bqhd,bkhd->bhqk', q * width**-0.5, k, preferred_element_type=precise)
    table = self.param(
      'position_bias', nn.initializers.normal(0.02), ((2 * WINDOW - 1) ** 3, self.heads)
    )
    # NOTE: a smaller window takes the top left of the full window's index, not its own distances:
    # published weights were trained so.
    bias = table[position_index()[:n, :n]].transpose(2, 0, 1)  # (heads, n, n)
    scores = scores + bias
    if regions is not None:
      region = jnp.asarray(regions)[:, None]
      near = region[..., :, None] == region[..., None, :]
      shape = (-1, region.shape[0], self.heads, n, n)
      scores = (scores.reshape(shape) + jnp.where(near, 0.0, MASKED)).reshape(scores.shape)
    weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
    out = product('bhqk,bkhd->bqhd', weights, v).reshape(count, n, channels)
    return ops.Dense(channels, dtype=self.dtype, name='project')(out)


class Block(nn.Module):
  """x + attention in windows, then x + feed-forward: (B, D, H, W, C) -> the same shape."""

  heads: int
  shifted: bool
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    grid, channels = x.shape[1:4], x.shape[-1]
    window, shift = windows_of(grid, self.shifted)
    missing = [-n % size for n, size in zip(grid, window, strict=True)]
    padded = tuple(n + more for n, more in zip(grid, missing, strict=True))
    # NOTE: padding comes after the norm and is attended to, as it was when weights were trained.
    y = ops.LayerNorm(dtype=self.dtype, name='norm_attention')(x)
    y = jnp.pad(y, ((0, 0), *((0, more) for more in missing), (0, 0)))
    regions = None
    if any(shift):
      y = jnp.roll(y, [-step for step in shift], (1, 2, 3))
      regions = shift_regions(padded, window, shift)
    y = WindowAttention(self.heads, self.dtype, name='attention')(partition(y, window), regions)
    y = unite(y, window, padded)
    if any(shift):
      y = jnp.roll(y, shift, (1, 2, 3))
    x = x + y[:, : grid[0], : grid[1], : grid[2]]
    y = ops.LayerNorm(dtype=self.dtype, name='norm_mlp')(x)
    y = nn.gelu(ops.Dense(4 * channels, dtype=self.dtype, name='mlp_in')(y), approximate=False)
    return x + ops.Dense(channels, dtype=self.dtype, name='mlp_out')(y)


class PatchMerging(nn.Module):
  """Joins 2x2x2 neighbours: (B, D, H, W, C) -> (B, ceil(D/2), ceil(H/2), ceil(W/2), 2C)."""

  order: str
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = jnp.pad(x, ((0, 0), *((0, n % 2) for n in x.shape[1:4]), (0, 0)))
    offsets = [tuple(map(int, offset)) for offset in MERGING_ORDERS[self.order]]
    joined = jnp.concatenate([x[:, i::2, j::2, k::2] for i, j, k in offsets], -1)
    joined = ops.LayerNorm(dtype=self.dtype, name='norm')(joined)
    reduce = ops.Dense(2 * x.shape[-1], use_bias=False, dtype=self.dtype, name='reduction')
    return reduce(joined)


class SwinTransformer(nn.Module):
  """Image (B, D, H, W, C_in) -> five hidden states of strides 2 to 32, widths f to 16 f.

  The states are normalised over the channels, without learned scale, after the next stage has
  taken them.
  """

  features: int  # f
  depths: tuple[int, ...] = (2, 2, 2, 2)
  heads: tuple[int, ...] = (3, 6, 12, 24)
  merging: str = 'monai'
  remat: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, image: jax.Array) -> list[jax.Array]:
    block = nn.remat(Block) if self.remat else Block
    x = ops.DownConv3D(self.features, self.dtype, name='embed')(image)
    states = [x]
    for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
      for i in range(depth):
        x = block(heads, i % 2 == 1, self.dtype, name=f'stage_{stage}_block_{i}')(x)
      x = PatchMerging(self.merging, self.dtype, name=f'stage_{stage}_merging')(x)
      states.append(x)
    normalise = ops.LayerNorm(learned=False, dtype=self.dtype)
    return [normalise(state) for state in states]
