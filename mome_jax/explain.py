"""Which scale each class trusts where, and which experts of a bank it chooses."""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mome_jax import inference, report
from mome_jax.segment import Segmentation, Segmenter


class Routing:
  """Collects the router's weights inside the predicted masks of some scans.

  Args:
    names: K class names.
    step: windows (B, D, H, W, C) -> (logits (B, D, H, W, K), L weights (B, K, D, H, W)).
    segmenter: for its grid and window.
    scales: L indices of the decoder layers that take part.
  """

  def __init__(
    self, names: Sequence[str], step: Callable, segmenter: Segmenter, scales: Sequence[int]
  ):
    self.names = tuple(names)
    self._scales = tuple(scales)
    self.cases = 0
    self._step = step
    self._segmenter = segmenter
    self._weight = self._voxels = 0.0
    self._view = None

  def add(self, image: np.ndarray, spacing: Sequence[float], segmentation: Segmentation) -> None:
    """Adds a scan: (D, H, W) HU, mm, and what was segmented in it."""
    channels = self._segmenter.network_input(image, spacing)
    window = self._segmenter.window
    missing = [max(w - n, 0) for w, n in zip(window, channels.shape[:3], strict=True)]
    channels = np.pad(channels, [*((0, m) for m in missing), (0, 0)])
    starts = [
      inference.window_starts(n, w, 0.0) for n, w in zip(channels.shape[:3], window, strict=True)
    ]
    best = -1
    for corner in ((i, j, k) for i in starts[0] for j in starts[1] for k in starts[2]):
      view = channels[tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))]
      if not view.any():
        continue
      logits, weights = self._step(view[None])
      weights = np.stack([w[0] for w in weights])  # (L, K, D, H, W)
      inside = np.moveaxis(np.asarray(logits[0]) > 0, -1, 0)  # (K, D, H, W)
      self._voxels += inside.sum((1, 2, 3))
      self._weight += np.einsum('lkdhw,kdhw->kl', weights, inside)
      if self.cases == 0 and inside.any((1, 2, 3)).sum() > best:
        best = inside.any((1, 2, 3)).sum()
        self._view = (view, inside, weights)
    self.cases += 1

  def draw(self, path: str | os.PathLike) -> None:
    """Writes the picture: a table of mean weights, and maps of the four largest classes."""
    low, high = self._segmenter.windows[0]
    anatomy, maps, outlines = {}, {}, {}
    view, inside, weights = self._view
    for k in np.argsort(-inside.sum((1, 2, 3)))[:4]:
      if not inside[k].any():
        break
      name = self.names[k]
      z = int(inside[k].sum((0, 1)).argmax())
      anatomy[name] = low + (high - low) * view[..., z, 0]
      maps[name] = np.tensordot(np.arange(len(weights)), weights[:, k, :, :, z], 1)
      outlines[name] = inside[k, :, :, z]
    with np.errstate(invalid='ignore', divide='ignore'):
      share = self._weight / self._voxels[:, None]
    spacing = self._segmenter.spacing
    report.routing(
      path,
      share=share,
      names=self.names,
      scale_labels=[f'{spacing[0] * 2**scale:g} mm' for scale in self._scales],
      image_slice=anatomy,
      maps=maps,
      outlines=outlines,
      spacing_2d=spacing[:2],
      title=f'Weight of each scale inside the predicted masks of {self.cases} scans',
    )


def draw_experts(folder: pathlib.Path, row: Mapping[str, list], names: Sequence[str]) -> None:
  """Draws which expert of each bank the voxels of each class chose: `experts_SCALE.png`.

  Args:
    folder: of the pictures.
    row: a line of `experts.jsonl`; `moe_SCALE/classes` is (E, K), choices by voxels of each class.
    names: K class names.
  """
  for key, value in row.items():
    if not key.endswith('/classes'):
      continue
    scale = key.removesuffix('/classes').removeprefix('moe_')
    choices = np.asarray(value).T
    with np.errstate(invalid='ignore'):
      share = choices / choices.sum(1, keepdims=True)
    report.routing(
      folder / f'experts_{scale}.png',
      share=share,
      names=names,
      scale_labels=[str(expert) for expert in range(share.shape[1])],
      title=f'Experts of scale {scale} chosen by the voxels of each class in training',
    )
