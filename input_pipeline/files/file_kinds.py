"""What kind of file it is, by the ending of its name and by its first bytes."""

import codecs
import re
import zlib

NIFTI_ENDINGS = ('.nii.gz', '.nii')
ITK_ENDINGS = ('.nrrd', '.nhdr', '.mha', '.mhd')  # which SimpleITK reads
SEGMENTS_ENDING = '.seg.nrrd'  # of 3D Slicer
VOLUMES = ('nifti', 'itk')  # kinds of files that hold a volume each
_ENDINGS = {
  'nifti': NIFTI_ENDINGS,
  'dicom': ('.dcm', '.dicom', '.ima'),
  'zip': ('.zip',),
  'itk': ITK_ENDINGS,
  'image': ('.mgz', '.mgh', '.mnc', '.hdr', '.img', '.nii.bz2', '.nii.xz', '.nii.zst'),
  'picture': ('.png', '.jpg', '.jpeg', '.gif', '.bmp', '.tif', '.tiff', '.svg', '.pdf'),
}  # fmt: skip
INPUT = ('nifti', 'itk', 'dicom', 'zip', 'image')
HEAD = 1024  # bytes that tell the kind of a file
_GZIP = b'\x1f\x8b'


def is_gzip(head: bytes) -> bool:
  """Whether a file that begins like this is compressed, whatever its name says."""
  return head.startswith(_GZIP)


def classify(name: str, head: bytes) -> tuple[str, str]:
  """Kind of a file, and why it is left out.

  Args:
    name: of the file.
    head: its first 1,024 bytes, all of a shorter one; looked at where the name does not say, or
      says another image or a picture: DICOM is often called `.img`.

  Returns:
    `inventory.File.kind` and `inventory.File.reason`.
  """
  base = name.rpartition('/')[2]
  if base.upper() == 'DICOMDIR':
    return 'other', 'DICOM directory'
  kind = by_ending(base)
  if kind is None:
    kind = _by_content(head)
  elif kind in ('itk', 'image', 'picture') and _is_dicom(head):
    kind = 'dicom'
  return (kind, '') if kind in INPUT else ('other', kind)


def by_ending(base: str) -> str | None:
  """Kind of a file by its name alone, None where that does not say."""
  lower = base.lower()
  kinds = (kind for kind, endings in _ENDINGS.items() if lower.endswith(endings))
  return next(kinds, None)


def _by_content(head: bytes) -> str:
  """Kind by the first bytes; a noun for what is no input."""
  if not head:
    return 'empty'
  if is_gzip(head):
    with_header = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
      head = with_header.decompress(head, HEAD)
    except zlib.error:
      return 'unknown format'
    return 'nifti' if _is_nifti(head) else 'gzip without a scan'
  if _is_nifti(head):
    return 'nifti'
  if head.startswith(b'PK\x03\x04'):
    return 'zip'
  if _is_dicom(head):
    return 'dicom'
  try:
    # A character may be cut at the end.
    text = codecs.getincrementaldecoder('utf-8')().decode(head, len(head) < HEAD)
  except UnicodeDecodeError:
    return 'unknown format'
  return 'unknown format' if re.search(r'[\0-\x08\x0e-\x1a\x1c-\x1f]', text) else 'text'


def _is_nifti(head: bytes) -> bool:
  sizes = {size.to_bytes(4, order) for size in (348, 540) for order in ('little', 'big')}
  magic = head[344:348], head[4:8]
  return head[:4] in sizes and any(m in (b'n+1\0', b'n+2\0') for m in magic)


def _is_dicom(head: bytes) -> bool:
  return head[128:132] == b'DICM' or _is_bare_dicom(head)


def _is_bare_dicom(head: bytes) -> bool:
  """Whether it begins with an element of DICOM group 2 or 8, as files without preamble do."""
  if len(head) < 16:
    return False
  for order in ('little', 'big'):
    group, element = (int.from_bytes(head[i : i + 2], order) for i in (0, 2))
    length = int.from_bytes(head[4:8], order)
    explicit = re.match(rb'(AE|AS|CS|DA|DT|IS|LO|LT|OB|PN|SH|SQ|ST|TM|UI|UL|UN|US|UT)', head[4:6])
    if group not in (2, 8) or element > 0x70:
      continue
    following = head[8 + length : 12 + length]
    numbers = [int.from_bytes(following[i : i + 2], order) for i in (0, 2)]
    # Without a type, what follows tells it from voxels: the next element, if it is not cut off.
    implicit = length < 1 << 10 and (
      len(following) < 4 or (numbers[0] == group and numbers[1] > element)
    )
    if explicit or implicit:
      return True
  return False
