"""The text at the head of NRRD and MetaImage files: geometry, segments, names of other files."""

import pathlib
import re
from collections.abc import Iterator

_MOST = 1 << 22  # bytes of a header; one with many segments has thousands
_DATA = 'data file', 'datafile', 'elementdatafile'
_LISTED = re.compile(r'(?i)LIST\b')


class HeaderError(ValueError):
  """A header that cannot be read; the message is why, without the file."""


def fields(path: pathlib.Path) -> dict[str, str]:
  """Fields of a header by their names, of NRRD in lower case; 'LIST' is followed by the files.

  Args:
    path: `.nrrd`, `.nhdr`, `.mha` or `.mhd` file.

  Raises:
    HeaderError: if it does not begin as such a file does.
    OSError: if it cannot be opened.
  """
  with path.open('rb') as stream:
    head = stream.read(_MOST)
  nrrd = head.startswith(b'NRRD')
  if not nrrd and not re.match(rb'\s*\w+\s*=', head):
    raise HeaderError('it begins neither as NRRD nor as MetaImage')
  lines = (line.decode('utf-8', 'replace').rstrip('\r') for line in head.split(b'\n'))
  return dict(_nrrd_fields(lines) if nrrd else _meta_fields(lines))


def _nrrd_fields(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
  """'space: RAS' and 'Segment0_Name:=liver', up to the empty line."""
  for line in lines:
    if not line:
      return
    name, colon, value = line.partition(':')
    if not colon or line.startswith('#'):
      continue
    if value.startswith('='):
      yield name, value[1:].strip()
    elif name.lower() in _DATA and _LISTED.match(value.strip()):
      yield name.lower(), '\n'.join(['LIST', *filter(None, lines)])
      return
    else:
      yield name.lower(), value.strip()


def _meta_fields(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
  """'DimSize = 3 4 5', up to the field that says where the voxels are."""
  for line in lines:
    name, equals, value = (part.strip() for part in line.partition('='))
    if not equals:
      continue
    name = name.lower()
    if name in _DATA and _LISTED.match(value):
      value = '\n'.join(['LIST', *(rest.strip() for rest in lines if rest.strip())])
    yield name, value
    if name in _DATA:
      return


def data_files(path: pathlib.Path) -> list[pathlib.Path]:
  """The other files that hold the voxels of an image; none where they follow the header.

  Raises:
    HeaderError: as `fields`, and if such a file is not to lie beside the header: what a file names
      anywhere else is not opened.
    OSError: if the header cannot be opened.
  """
  held = fields(path)
  value = next((held[name] for name in _DATA if name in held), 'LOCAL')
  first, *listed = value.split('\n')
  if first.upper() == 'LOCAL':
    return []
  pattern = re.fullmatch(r'([^%]*%0?\d*d[^%]*?) (\d+) (\d+)(?: (\d+))?(?: \d+)?', first)
  if _LISTED.match(first):
    names = listed
  elif pattern:
    text, begin, end, step = pattern.groups()
    names = [text % number for number in range(int(begin), int(end) + 1, int(step or 1) or 1)]
  else:
    names = [first]
  for name in names:
    place = pathlib.PurePath(name)
    if place.is_absolute() or '..' in place.parts:
      raise HeaderError(f'its voxels are said to be in {name}; put them beside it')
  return [path.parent / name for name in names]
