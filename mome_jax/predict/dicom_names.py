"""What a class is called in DICOM: its label, and its codes."""

from collections.abc import Iterable
from typing import Any, NamedTuple

# SNOMED CT codes of the classes without their side; those of DICOM's context groups where it has
# one (PS3.16). What is not listed is coded as a body structure and named by its label.
_ORGANS = {
  'spleen': ('78961009', 'Spleen'),
  'kidney': ('64033007', 'Kidney'),
  'gallbladder': ('28231008', 'Gallbladder'),
  'esophagus': ('32849002', 'Esophagus'),
  'liver': ('10200004', 'Liver'),
  'stomach': ('69695003', 'Stomach'),
  'aorta': ('15825003', 'Aorta'),
  'postcava': ('64131007', 'Inferior vena cava'),
  'portal and splenic vein': ('32764006', 'Portal vein'),
  'pancreas': ('15776009', 'Pancreas'),
  'adrenal gland': ('23451007', 'Adrenal gland'),
  'duodenum': ('38848004', 'Duodenum'),
  'hepatic vessel': ('8993003', 'Hepatic vein'),
  'lung': ('39607008', 'Lung'),
  'colon': ('71854001', 'Colon'),
  'rectum': ('34402009', 'Rectum'),
  'bladder': ('89837001', 'Bladder'),
  'prostate': ('41216001', 'Prostate'),
  'femoral head': ('2812003', 'Femoral head'),
  'celiac trunk': ('57850000', 'Celiac Axis'),
  'brainstem': ('119238007', 'Brain Stem'),
  'spinal cord': ('2748008', 'Spinal cord'),
  'parotid': ('45289007', 'Parotid gland'),
  'larynx': ('4596009', 'Larynx'),
  'mandible': ('91609006', 'Mandible'),
}
_LESIONS = {'tumor': ('108369006', 'Neoplasm'), 'cyst': ('367643001', 'Cyst')}
_SIDES = {'right': ('24028007', 'Right'), 'left': ('7771000', 'Left')}
_STRUCTURE = ('123037004', 'Body structure')
_LESION = ('49755003', 'Morphologically Abnormal Structure')


class Coded(NamedTuple):
  """What a class is in codes.

  Attributes:
    category: of the segmented property.
    type: of the segmented property.
    site: where a lesion is, else None.
    side: of the body, else None.
  """

  category: Any
  type: Any
  site: Any
  side: Any


def labels(names: Iterable[str]) -> dict[str, str]:
  r"""What the segment of each class is called: its name, as far as DICOM takes it.

  DICOM takes 64 characters, no `\` and nothing that is not printed. Names that are one in these get
  a number, as readers tell segments apart by what they are called.
  """
  made: dict[str, str] = {}
  for name in names:
    whole = ''.join(c if c.isprintable() else ' ' for c in name).replace('\\', '/')
    label, number = whole[:64], 1
    while label in made.values():
      number += 1
      end = f' ({number})'
      label = whole[: 64 - len(end)] + end
    made[name] = label
  return made


def coded(name: str) -> Coded:
  """The codes of a class."""
  import highdicom

  code = lambda pair: highdicom.sr.CodedConcept(pair[0], 'SCT', pair[1])
  side, _, rest = name.partition(' ')
  organ = rest if side in _SIDES else name
  words = organ.split()
  lesion = _LESIONS.get(words[-1]) if words and organ not in _ORGANS else None
  region = _ORGANS.get(' '.join(words[:-1])) if lesion else None
  return Coded(
    code(_LESION if lesion else _STRUCTURE),
    code(lesion or _ORGANS.get(organ, _STRUCTURE)),
    code(region) if region else None,
    code(_SIDES[side]) if side in _SIDES else None,
  )
