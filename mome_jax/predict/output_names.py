"""What the files of classes are called."""

import re
import unicodedata

from mome_jax.predict.request import Target

_LONGEST = 60  # characters of a class in a file name; four bytes each fit into 255


def of_class(target: Target) -> str:
  """The file of a class, which no other class has, on disks that ignore case either.

  A name of plain Latin words stands for itself; any other one, and free text, after its label.
  """
  word = re.sub(r'\W+', '_', unicodedata.normalize('NFKC', target.name)).strip('_')
  plain = re.fullmatch(r'[a-z][a-z0-9]*( [a-z0-9]+)*', target.name) and len(word) <= _LONGEST
  if not plain or target.taken_as == 'free':
    word = f'{target.label}_{word[:_LONGEST]}'.rstrip('_')
  return f'{word}.nii.gz'
