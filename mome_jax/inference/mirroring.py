"""Segmenting the mirror image of a scan as well: what is left in it is right in the scan.

nnU-Net averages over mirrored windows (test-time augmentation). A patient has sides, so the prompts
of paired classes change places with the image.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from input_pipeline.anatomy import Template, sides
from mome_jax.errors import UserError


class MirrorError(UserError):
  """There is no mirror image of a class; the message names it."""


def mirrored_prompts(names: Sequence[str], prompts: Sequence[str], template: Template) -> list[str]:
  """What finds, in the mirror image of a scan, what the prompts mean in the scan.

  Args:
    names: K class names.
    prompts: texts of those, then free ones, whose words left and right are exchanged.
    template: of the class names.

  Raises:
    MirrorError: if a class lies on one side and its partner is not among the names.
  """
  text_of = dict(zip(names, prompts, strict=False))
  partners = {name: sides.exchanged(name) for name in names}
  for name, partner in partners.items():
    if partner not in text_of or (partner == name and template.get(name).side):
      raise MirrorError(
        f'test-time mirroring: the model knows {name!r} and no class that is its mirror image; '
        'leave --tta out'
      )
  return [text_of[partners[name]] for name in names] + [
    sides.exchanged(text) for text in prompts[len(names) :]
  ]


def mirrored(
  reader: Callable[[np.ndarray], Iterator[jax.Array]],
) -> Callable[[np.ndarray], Iterator[jax.Array]]:
  """A reader that sees windows (B, D, H, W, C) mirrored along D, from right to left."""

  def read(windows: np.ndarray) -> Iterator[jax.Array]:
    parts = reader(np.ascontiguousarray(windows[:, ::-1]))
    return (logits[:, :, ::-1] for logits in parts)

  return read
