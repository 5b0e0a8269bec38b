"""Anatomical rules for predicted masks, each switched by its name.

| rule | does |
|:--|:--|
| sides | paired organs: every component goes to the side of the body where it lies |
| largest | built-in organs that are one piece keep their largest component |
| portal | the portal and splenic vein ends at the lowest slice of the pancreas |
| inside | what lies in an organ stays within the closed organ and 3 mm around it |
| minimum | tumours and cysts lose components below a volume |

`evaluation.postprocess` of a config, or `predict --postprocess`, names those that run. They run in
this order, one class at a time inside its box, on the packed masks of a `Segmentation`.
Components are 26-connected. The choice of rules follows the CLIP-Driven Universal Model, which
states its minimum volumes in voxels of 1.5 mm; here they are millilitres.
"""

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from input_pipeline.anatomy import TEMPLATE, Template
from input_pipeline.ct.components import components
from mome_jax.errors import UserError, suggest
from mome_jax.inference.segmentation import Box, Segmentation

MINIMUM_ML = {
  'kidney tumor': 0.27,
  'liver tumor': 0.07,
  'pancreas tumor': 0.34,
  'hepatic vessel tumor': 0.27,
  'lung tumor': 0.10,
  'colon tumor': 0.34,
  'kidney cyst': 0.07,
}
BRANCHED = ('portal and splenic vein',)  # organs that a thin vessel may leave in several pieces
REACH_MM = 3.0
_MIXED = 0.1  # of a component: less of it across the midline or under the other name is stray


class PostprocessError(UserError):
  """A rule that does not exist; the message lists those that do."""


def check(rules: Collection[str]) -> None:
  """Raises PostprocessError where a name is not in `RULES`."""
  for rule in rules:
    if rule not in RULES:
      raise PostprocessError(
        f'no rule of post-processing is called {rule!r}; {suggest(rule, RULES)}'
      )


def parse(text: str) -> tuple[str, ...]:
  """Rules as a command line names them: separated by commas, or 'none'.

  Raises:
    PostprocessError: if a rule is unknown.
  """
  rules = tuple(part.strip() for part in text.split(',') if part.strip())
  rules = () if rules == ('none',) else rules
  check(rules)
  return rules


def apply(
  segmentation: Segmentation,
  rules: Collection[str],
  spacing: Sequence[float] | np.ndarray,
  midline: float,
) -> Segmentation:
  """Applies rules, in the order of `RULES`.

  A voxel taken from a class goes to the organ around it where that one's own probability says so,
  else to the background: no other class's mask changes.

  Args:
    segmentation: masks of a scan; they stay as they are.
    rules: names of `RULES`; none returns the segmentation as it is.
    spacing: (3,) mm.
    midline: index along axis 0 of the plane between left and right; see `ct.body.midline`.

  Returns:
    A new segmentation.

  Raises:
    PostprocessError: if a rule is unknown.
  """
  check(rules)
  if not rules:
    return segmentation
  masks = _Masks(segmentation, spacing, midline)
  for name, rule in RULES.items():
    if name in rules:
      rule(masks)
  return dataclasses.replace(segmentation, winner=masks.winner, over=masks.over)


def without(segmentation: Segmentation, names: Collection[str]) -> Segmentation:
  """The same where some of the classes that compete have no mask; structures in them stay.

  Their voxels go as those that a rule takes: see `apply`.
  """
  if not names:
    return segmentation
  masks = _Masks(segmentation, (1, 1, 1), 0)
  for name in names:
    box = masks.box(name)
    if box is not None:
      masks.remove(name, box, masks.mask(name, box))
  return dataclasses.replace(segmentation, winner=masks.winner, over=masks.over)


class _Masks:
  """Copies of the packed masks that rules change class by class, inside boxes."""

  def __init__(
    self, segmentation: Segmentation, spacing: Sequence[float] | np.ndarray, midline: float
  ):
    self._view = dataclasses.replace(
      segmentation, winner=segmentation.winner.copy(), over=segmentation.over.copy()
    )
    self.winner, self.over = self._view.winner, self._view.over
    self.names = segmentation.names
    self.template: Template = segmentation.template
    self.spacing = tuple(float(mm) for mm in spacing)
    self.midline = midline
    known = self.template.names()
    self.structures = [self.template.get(name) for name in self.names if name in known]
    # Rules only shrink a mask, but for `move`: what holds all of it now does so later.
    self._boxes = dict(segmentation.boxes)

  def box(self, *names: str, margin: Sequence[int] = (0, 0, 0)) -> Box | None:
    """Slices around some classes that are there; None where none of them is."""
    boxes = [self._boxes[name] for name in names if self._boxes[name] is not None]
    if not boxes:
      return None
    return tuple(
      slice(max(0, min(s.start for s in spans) - m), min(max(s.stop for s in spans) + m, n))
      for spans, m, n in zip(zip(*boxes, strict=True), margin, self.winner.shape, strict=True)
    )

  def mask(self, name: str, box: Box) -> np.ndarray:
    """The part of a mask inside a box."""
    return self._view.mask(name, box)

  def remove(self, name: str, box: Box, where: np.ndarray) -> None:
    """Takes voxels, bool inside the box, from a class; they fall to an organ that contains it."""
    self._set(name, box, where, False)
    winner = self.winner[box]
    lost = where & (winner == self.names.index(name) + 1)
    winner[lost] = 0
    # Nearest first: an ancestor of an ancestor has more ancestors missing.
    ancestors = [other for other in self.template.ancestors(name) if other in self.names]
    ancestors.sort(key=lambda other: (-len(self.template.ancestors(other)), other))
    for other in ancestors:
      fallen = lost & self._view.is_over(other, box) & (winner == 0)
      winner[fallen] = self.names.index(other) + 1

  def move(self, source: str, target: str, box: Box, where: np.ndarray) -> None:
    """Gives voxels, bool inside the box, of one class to another."""
    self._set(source, box, where, False)
    self._set(target, box, where, True)
    winner = self.winner[box]
    owned = where & (winner == self.names.index(source) + 1)
    winner[owned] = self.names.index(target) + 1
    self._boxes[target] = self.box(source, target)

  def _set(self, name: str, box: Box, where: np.ndarray, value: bool) -> None:
    if name not in self._view.containers:
      return
    n = self._view.containers.index(name)
    bit = np.uint8(1 << (7 - n % 8))
    column = self.over[box][..., n // 8]
    column[where] = column[where] | bit if value else column[where] & ~bit


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Labels (D, H, W) of a bool mask, and the voxels of every label, none of the background."""
  labels, number = components(mask)
  return labels, np.bincount(labels[mask], minlength=number + 1)


def _sides(masks: _Masks) -> None:
  for right, left in masks.template.pairs().values():
    if {right, left} <= set(masks.names):
      _separate(masks, right, left)


def _separate(masks: _Masks, right: str, left: str) -> None:
  box = masks.box(right, left)
  if box is None:
    return
  in_right, in_left = masks.mask(right, box), masks.mask(left, box)
  labels, sizes = _components(in_right | in_left)
  x = np.arange(box[0].start, box[0].stop)[:, None, None]
  beyond = np.broadcast_to(x > masks.midline, labels.shape)  # the patient's right
  share = np.bincount(labels[beyond], minlength=len(sizes)) / np.maximum(sizes, 1)
  to_right = np.isin(labels, np.flatnonzero(share > 0.5))
  # Organs that touch, as lungs do in front of the heart, are one component across the midline.
  for label in np.flatnonzero((np.minimum(share, 1 - share) > _MIXED) & (sizes > 0)):
    inside = labels == label
    to_right[inside] = (in_right if _ordered(inside, in_right, in_left) else beyond)[inside]
  masks.move(right, left, box, in_right & ~to_right)
  masks.move(left, right, box, in_left & to_right)


def _ordered(inside: np.ndarray, in_right: np.ndarray, in_left: np.ndarray) -> bool:
  """Whether a component already has its right part to the right of its left part."""
  right, left = (np.nonzero(inside & part)[0] for part in (in_right, in_left))
  enough = min(right.size, left.size) > _MIXED * np.count_nonzero(inside)
  return bool(enough and right.mean() > left.mean())


def _largest(masks: _Masks) -> None:
  for structure in masks.structures:
    # Nobody knows whether a class that came with a dataset is one piece.
    built_in = structure.name in TEMPLATE.names()
    if structure.parents or structure.name in BRANCHED or not built_in:
      continue
    box = masks.box(structure.name)
    if box is None:
      continue
    mask = masks.mask(structure.name, box)
    labels, sizes = _components(mask)
    if np.count_nonzero(sizes) > 1:
      masks.remove(structure.name, box, mask & (labels != sizes.argmax()))


def _portal(masks: _Masks) -> None:
  vein = 'portal and splenic vein'
  if vein not in masks.names or 'pancreas' not in masks.names:
    return
  pancreas, box = masks.box('pancreas'), masks.box(vein)
  if pancreas is None or box is None:
    return
  heights = np.flatnonzero(masks.mask('pancreas', pancreas).any((0, 1)))
  if heights.size:
    below = masks.mask(vein, box)
    below[:, :, max(0, pancreas[2].start + heights[0] - box[2].start) :] = False
    masks.remove(vein, box, below)


def _inside(masks: _Masks) -> None:
  # Closing and dilating reach this far.
  margin = [int(2 * REACH_MM / mm) + 1 for mm in masks.spacing]
  for structure in masks.structures:
    parents = [parent for parent in structure.parents if parent in masks.names]
    box = masks.box(structure.name)
    if len(parents) < len(structure.parents) or not parents or box is None:
      continue  # it may lie in an organ that was not asked for
    around = masks.box(structure.name, *parents, margin=margin) or box
    organ = np.logical_or.reduce([masks.mask(parent, around) for parent in parents])
    near = _surroundings(organ, masks.spacing, margin)
    masks.remove(structure.name, around, masks.mask(structure.name, around) & ~near)


def _surroundings(
  organ: np.ndarray, spacing: Sequence[float] | np.ndarray, margin: Sequence[int]
) -> np.ndarray:
  """The mask closed with a ball of `REACH_MM` and then dilated with it."""
  from scipy import ndimage  # slow to import, and the rules are listed in help

  if not organ.any():
    return np.zeros_like(organ)
  # Padded, so that closing does not wear the mask down at the border of the scan.
  padded = np.pad(organ, [(m, m) for m in margin], mode='edge')
  distance = ndimage.distance_transform_edt
  dilated = distance(~padded, spacing) <= REACH_MM
  closed = padded | (distance(dilated, spacing) > REACH_MM if not dilated.all() else dilated)
  inner = tuple(slice(m, n - m) for m, n in zip(margin, padded.shape, strict=True))
  return (distance(~closed, spacing) <= REACH_MM)[inner]


def _minimum(masks: _Masks) -> None:
  voxel_ml = float(np.prod(masks.spacing)) / 1000
  for name, least in MINIMUM_ML.items():
    box = masks.box(name) if name in masks.names else None
    if box is not None:
      labels, sizes = _components(masks.mask(name, box))
      small = np.flatnonzero((sizes > 0) & (sizes * voxel_ml < least))
      masks.remove(name, box, np.isin(labels, small))


RULES = {
  'sides': _sides,
  'largest': _largest,
  'portal': _portal,
  'inside': _inside,
  'minimum': _minimum,
}
