"""Source labels to template codes: mapping, right and left, organs that contain lesions."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from input_pipeline import remarks
from input_pipeline.anatomy import IGNORE_CODE, TEMPLATE, Template
from input_pipeline.ct import body
from input_pipeline.ct.components import components
from input_pipeline.errors import UserError

# What a label value stands for: a class, a paired organ without its side ('kidney'), several
# classes that all hold the voxel, IGNORE, or None, declared and not used: background.
Meaning = str | Sequence[str] | None
IGNORE = 'ignore'  # nobody looked there: no class is supervised

_STRADDLES = 0.2  # a component with more than this on its smaller side is two touching organs
_PIECE = 0.2  # a component with at least this share of the organ is not a splinter
_APART_MM = 40.0  # of two pieces: closer ones are one broken organ, not a pair


class LabelError(UserError):
  """Label values that nobody declared, or that contradict each other; the message names them."""


def map_codes(array: np.ndarray, mapping: Mapping[int, int], *, name: str) -> np.ndarray:
  """Translates a source's label values into template codes.

  Args:
    array: (D, H, W) integers, label values of the source; 0 is background unless mapped.
    mapping: label value -> code of `anatomy`, 0..255; a value mapped to 0 is declared as ignored.
    name: file or case, for messages.

  Returns:
    (D, H, W) uint8 codes.

  Raises:
    TypeError: if the array holds no integers.
    LabelError: if a value is neither 0 nor in the mapping, or a code is outside 0..255.
  """
  if array.dtype.kind not in 'iu':
    raise TypeError(f'{name}: labels are {array.dtype}; read them with volume.read_labels')
  wrong = {value: code for value, code in mapping.items() if not 0 <= code <= 255}
  if wrong:
    raise LabelError(f'{name}: codes of {wrong} are outside 0..255; correct the mapping')
  known = {0: 0, **mapping}
  values = np.unique(array).tolist()
  unknown = [value for value in values if value not in known]
  if unknown:
    raise LabelError(
      f'{name}: label values {unknown} are not declared (known: {sorted(known)}); correct the '
      'label map, or of your own scans add them to "labels" in dataset.json, with names in '
      '"ignored" for what is not used'
    )
  # Counting from the smallest value, so that negative ones do not index from the end.
  low = min(known)
  table = np.zeros(max(known) - low + 1, np.uint8)
  for value, code in known.items():
    table[value - low] = code
  return table[array if low == 0 else array.astype(np.intp) - low]


def names_of(meanings: Mapping[int, Meaning]) -> frozenset[str]:
  """The names that a mapping labels, as they are written: a pair is one."""
  return frozenset(name for meaning in meanings.values() for name in _names(meaning))


def classes_of(meanings: Mapping[int, Meaning], template: Template = TEMPLATE) -> tuple[str, ...]:
  """The classes that a mapping labels, in the template's order; a pair counts as both sides."""
  pairs = template.pairs()
  sides = {side for name in names_of(meanings) for side in pairs.get(name, (name,))}
  return tuple(sorted(sides, key=lambda name: template.get(name).index))


def restrict(
  meanings: Mapping[int, Meaning], names: Sequence[str], template: Template = TEMPLATE
) -> dict[int, Meaning]:
  """A mapping of which only some classes are labelled: a tumor is then plain organ, or nothing.

  Args:
    meanings: label value -> what it stands for.
    names: the classes or pairs that are labelled.
    template: of the names.
  """
  pairs = template.pairs()
  holders = {name: name for name in names}
  holders |= {side: noun for noun, sides in pairs.items() if noun in names for side in sides}
  kept: dict[int, Meaning] = {}
  for value, meaning in meanings.items():
    if _ignored(meaning):
      kept[value] = meaning
      continue
    labelled: dict[str, None] = {}
    for name in _names(meaning):
      around = [name] if name in holders else sorted(template.ancestors(pairs.get(name, [name])[0]))
      labelled |= dict.fromkeys(holders[n] for n in around if n in holders)
    kept[value] = tuple(labelled) or None
  return kept


def convert(
  array: np.ndarray,
  meanings: Mapping[int, Meaning],
  *,
  spacing: ArrayLike,
  name: str,
  image: np.ndarray | None = None,
  template: Template = TEMPLATE,
) -> np.ndarray:
  """Translates a source's label values into template codes, with sides where they are needed.

  A paired organ that the source does not separate is split into right and left, together with its
  lesions; a lesion is of the organ that it touches, also where it reaches over the middle. What a
  value says of the side holds, whatever lies around it.

  Args:
    array: (D, H, W) integers in canonical order.
    meanings: label value -> what it stands for; 0 is background.
    spacing: (3,) mm.
    name: file or case, for messages.
    image: (D, H, W) HU, to find the middle of the body; without it that of the grid is taken.
    template: of the names.

  Returns:
    (D, H, W) uint8 codes; IGNORE_CODE where the meaning is IGNORE.

  Raises:
    LabelError: as `map_codes`, and if a value stands for classes that do not contain each other.
    ClassError: if the template has no such class.
  """
  pairs = template.pairs()
  mapping = {value: _code(names, template) for value, names in meanings.items()}
  codes = map_codes(array, mapping, name=name)
  mentioned = {n for names in meanings.values() for n in _names(names)}
  for noun, (right, left) in pairs.items():
    if not {noun, right, left} & mentioned:
      continue
    lesions = _lesion_codes(template, right, left)
    said = [
      np.isin(array, [value for value, names in meanings.items() if side in _names(names)])
      for side in (right, left)
    ]
    if noun in mentioned:
      _split_pair(codes, template, (right, left), lesions, said, spacing, f'{name}: {noun}', image)
    else:
      _side_lesions(codes, template, (right, left), lesions, said, image)
  return codes


def check_meaning(meaning: Meaning, template: Template = TEMPLATE) -> None:
  """Raises LabelError if a value stands for classes of which none contains the other.

  It also does if a value is to be ignored and stands for a class.
  """
  _innermost(meaning, template)
  if _ignored(meaning) and _names(meaning):
    raise LabelError(f'it is to be ignored, and stands for {sorted(_names(meaning))}; choose one')


def split_sides(
  mask: np.ndarray,
  middle: float,
  spacing: ArrayLike,
  *,
  name: str,
  lesions: np.ndarray | None = None,
) -> np.ndarray:
  """Which voxels of a paired organ are the right one's.

  Every component lies on the side of the centroid of its own tissue, or where it is all lesion of
  that. One whose own tissue reaches far over the middle is two organs that touch, and is cut there;
  a lesion may grow over it. Two large pieces on one side, far apart from right to left, mean that
  the middle is wrong (a scan cut off at one side): the one further right is the right organ.
  Nothing is deleted.

  Args:
    mask: (D, H, W) bool in canonical order (axis 0 grows to the right).
    middle: of the body along axis 0, voxels.
    spacing: (3,) mm.
    name: for warnings.
    lesions: (D, H, W) bool, what of the mask is no tissue of the organ's own; by default nothing.

  Returns:
    (D, H, W) bool, True on the right side; only the voxels of the mask have a meaning.

  Warns:
    UserWarning: where an organ was cut, or pieces and middle disagree.
  """
  parts, number = components(mask)
  if not number:
    return np.zeros(mask.shape, bool)
  planes = _planes(parts, number)
  own = planes if lesions is None else _planes(np.where(lesions, 0, parts), number)
  sizes, x = planes.sum(1), np.arange(mask.shape[0])
  told = np.where(own.any(1, keepdims=True), own, planes)
  centres = told @ x / told.sum(1)
  pieces = np.argsort(-sizes, kind='stable')[:2]
  if number > 1 and sizes[pieces[1]] >= _PIECE * sizes.sum():
    low, high = sorted(centres[pieces])
    same_side = (low > middle) == (high > middle)
    if same_side and (high - low) * np.asarray(spacing)[0] >= _APART_MM:
      remarks.tell(
        f'{name}: both lie on one side of the body; the one further right is called right'
      )
      middle = (low + high) / 2
  right = np.append(False, centres > middle)
  result = right[parts]
  beyond, tissue = own[:, x > middle].sum(1), own.sum(1)
  for i in np.flatnonzero(np.minimum(beyond, tissue - beyond) > _STRADDLES * tissue):
    remarks.tell(f'{name}: right and left touch; cut at the middle of the body')
    part = parts == i + 1
    result[part] = np.broadcast_to((x > middle)[:, None, None], mask.shape)[part]
  return result


def _planes(parts: np.ndarray, number: int) -> np.ndarray:
  """(components, D): voxels of each component in each sagittal plane."""
  return np.stack([np.bincount(plane.ravel(), minlength=number + 1) for plane in parts], 1)[1:]


def _parts(meaning: Meaning) -> tuple[str, ...]:
  return (meaning,) if isinstance(meaning, str) else tuple(meaning or ())


def _names(meaning: Meaning) -> tuple[str, ...]:
  return tuple(name for name in _parts(meaning) if name != IGNORE)


def _ignored(meaning: Meaning) -> bool:
  return IGNORE in _parts(meaning)


def _innermost(meaning: Meaning, template: Template) -> str | None:
  pairs = template.pairs()
  written = set(_names(meaning))
  # A pair is its right organ for now, and nothing beside one of its sides.
  written -= {n for n in written & pairs.keys() if written & set(pairs[n])}
  names = {pairs[n][0] if n in pairs else n for n in written}
  inner = [n for n in names if not any(n in template.ancestors(other) for other in names)]
  if len(inner) > 1:
    raise LabelError(
      f'it stands for {sorted(inner)}, of which none contains the other; declare their parents, '
      'or choose one'
    )
  return inner[0] if inner else None


def _code(meaning: Meaning, template: Template) -> int:
  """The code of what contains no other of the names; a pair is its right organ for now."""
  if _ignored(meaning):
    return IGNORE_CODE
  inner = _innermost(meaning, template)
  return template.get(inner).index if inner else 0


def _lesion_codes(template: Template, right: str, left: str) -> dict[int, tuple[int, int]]:
  """Code of a lesion without a side -> its codes in the right and in the left organ."""
  sided: dict[int, dict[str, int]] = {}
  for code, (lesion, parent) in template.sided_codes.items():
    if parent in (right, left):
      sided.setdefault(template.get(lesion).index, {})[parent] = code
  return {index: (codes[right], codes[left]) for index, codes in sided.items()}


def _split_pair(codes, template, organs, lesions, said, spacing, name, image):
  right, left = (template.get(organ).index for organ in organs)
  mask = np.isin(codes, [right, *lesions])
  rest = mask & ~said[0] & ~said[1]
  to_right = said[0]
  lesion = np.isin(codes, list(lesions))
  if rest.any():
    middle = _middle(codes, mask, image)
    to_right = to_right | split_sides(rest, middle, spacing, name=name, lesions=lesion)
  codes[(codes == right) & ~to_right] = left
  _follow(codes, lesion & rest, (right, left), to_right)
  _assign(codes, lesions, to_right)


def _side_lesions(codes, template, organs, lesions, said, image):
  """Sides of lesions where the source itself separates the organs."""
  mask = np.isin(codes, list(lesions))
  if not mask.any():
    return
  indices = [template.get(organ).index for organ in organs]
  right, left = (np.flatnonzero((codes == index).any((1, 2))) for index in indices)
  if len(right) and len(left):
    middle = (right.mean() + left.mean()) / 2
  else:
    middle = _middle(codes, mask, image)
  rest = mask & ~said[0] & ~said[1]
  x = np.arange(len(codes))
  to_right = said[0] | (x > middle)[:, None, None] & ~said[1]
  _follow(codes, rest, indices, to_right)
  _assign(codes, lesions, to_right)


def _follow(codes, lesions, organs, to_right):
  """Gives lesions, in place of `to_right`, the side of the organ that they touch.

  One that touches both, each with a good part of its border, or neither keeps what it has.
  """
  if not lesions.any():
    return
  box = body.box(lesions, (1, 1, 1))
  codes, to_right = codes[box], to_right[box]
  pieces, number = components(lesions[box])
  touched = np.zeros((2, number + 1), np.int64)
  for axis in range(3):
    one, other = np.moveaxis(pieces, axis, 0), np.moveaxis(codes, axis, 0)
    for piece, code in ((one[1:], other[:-1]), (one[:-1], other[1:])):
      for side, organ in enumerate(organs):
        touched[side] += np.bincount(piece[code == organ], minlength=number + 1)
  least = _STRADDLES * touched.sum(0)
  follows = (touched.min(0) <= least) & (touched.sum(0) > 0)
  follows[0] = False  # what is around them
  at = follows[pieces]
  to_right[at] = (touched[0] > touched[1])[pieces[at]]


def _assign(codes, lesions, to_right):
  for index, (in_right, in_left) in lesions.items():
    lesion = codes == index
    codes[lesion & to_right] = in_right
    codes[lesion & ~to_right] = in_left


def _middle(codes, mask, image):
  if image is None:
    return (codes.shape[0] - 1) / 2
  return body.midline(image, mask.any((0, 1)))
