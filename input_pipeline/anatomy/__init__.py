"""The class template: what can be segmented, how it is called, and which label codes stand for it.

The only place that knows class indices. Right and left are the patient's.

A stored label map holds uint8 *codes*: the most specific structure of each voxel. The code of a
structure is its index, and it also counts as the structures that contain it (a liver tumor voxel is
liver). Where the containing organ depends on the side, each side has a code of its own
(`SIDED_CODES`), and the plain index means that the side is unknown. Two codes are no structures: of
a voxel of `IGNORE_CODE` nothing is known, and one of `OUTSIDE_CODE` is not in the patient.

`TEMPLATE` is the built-in one and never changes. `TEMPLATE.extend(...)` makes a longer one; whoever
works with other classes is given it.
"""

from input_pipeline.anatomy.classes import SIDED_CODES
from input_pipeline.anatomy.structure import (
  FIRST_SIDED_CODE,
  IGNORE_CODE,
  OUTSIDE_CODE,
  ClassError,
  Structure,
)
from input_pipeline.anatomy.template import TEMPLATE, Template

__all__ = [
  'FIRST_SIDED_CODE',
  'IGNORE_CODE',
  'OUTSIDE_CODE',
  'SIDED_CODES',
  'TEMPLATE',
  'ClassError',
  'Structure',
  'Template',
]
