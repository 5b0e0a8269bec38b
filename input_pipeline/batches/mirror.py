"""Left-right mirror images of labelled scans: what lay on the right lies on the left."""

import numpy as np

from input_pipeline.anatomy import ClassError, Template, sides


def mirrored_names(template: Template) -> dict[str, str]:
  """Every class of a template -> what it is called in a mirror image of the patient.

  Raises:
    ClassError: if a class lies on one side and its partner is missing, or lies in other structures
      than its mirror image does.
  """
  names = {s.name: sides.exchanged(s.name) for s in template}
  for s in template:
    other = names[s.name]
    if other not in names or (s.side and other == s.name):
      raise ClassError(
        f'class {s.name!r} lies on one side and no class is its mirror image; declare one of that '
        'name with left and right exchanged'
      )
    if {names[parent] for parent in s.parents} != set(template.get(other).parents):
      raise ClassError(
        f'class {s.name!r} lies in {sorted(s.parents)}, its mirror image {other!r} in '
        f'{sorted(template.get(other).parents)}; declare both alike'
      )
  return names


def mirrored_codes(template: Template) -> np.ndarray:
  """Label codes -> those of a mirror image: (256,) uint8; ClassError as `mirrored_names`."""
  names = mirrored_names(template)
  table = np.arange(256, dtype=np.uint8)
  for s in template:
    table[s.index] = template.get(names[s.name]).index
  code_of = {meaning: code for code, meaning in template.sided_codes.items()}
  for code, (name, parent) in template.sided_codes.items():
    table[code] = code_of[names[name], names[parent]]
  return table


def mirror(
  image: np.ndarray, label: np.ndarray, frame: np.ndarray, codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The mirror image of a patch.

  Args:
    image: (D, H, W, ...), axis 0 runs to the patient's right.
    label: (D, H, W) uint8 codes.
    frame: (4,), frame[:3] . (i, j, k) + frame[3] is the height of voxel (i, j, k).
    codes: (256,) uint8, from `mirrored_codes`.

  Returns:
    image, label and frame of the mirrored patch.
  """
  turned = frame * (-1, 1, 1, 1)
  turned[3] += frame[0] * (len(label) - 1)
  return image[::-1], codes[label[::-1]], turned
