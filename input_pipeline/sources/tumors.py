"""Datasets that label one organ and its tumours.

Licences as far as known; the terms that come with the download decide.
"""

import dataclasses

from input_pipeline.sources.dataset import Dataset

LITS = Dataset(
  name='lits',
  description='Liver and liver tumours.',
  licence='CC BY-NC-ND 4.0',
  citation=(
    'P. Bilic et al., "The liver tumor segmentation benchmark (LiTS)," Medical Image Analysis 84, '
    '2023'
  ),
  expected=131,
  image=r'volume-(?P<case>\d+)\.nii(?:\.gz)?',
  label=(r'segmentation-(?P<case>\d+)\.nii(?:\.gz)?',),
  meanings={1: 'liver', 2: 'liver tumor'},
)

KITS = Dataset(
  name='kits',
  description='Kidneys, kidney tumours and cysts before surgery: KiTS21, or KiTS19 without cysts.',
  licence='CC BY-NC-SA 4.0',
  citation=(
    'N. Heller et al., "The KiTS21 challenge: Automatic segmentation of kidneys, renal tumors, and '
    'renal cysts in corticomedullary-phase CT," arXiv 2307.01984, 2023'
  ),
  expected=300,
  image=r'(?P<case>case_\d{5})/imaging\.nii\.gz',
  # A voxel is in the aggregate OR if one of the annotators marked it.
  label=(
    r'(?P<case>case_\d{5})/aggregated_OR_seg\.nii\.gz',
    r'(?P<case>case_\d{5})/segmentation\.nii\.gz',
  ),
  meanings={1: 'kidney', 2: 'kidney tumor', 3: 'kidney cyst'},
  # The labels of KiTS19 have no cysts.
  partial=((r'segmentation\.nii\.gz', ('kidney', 'kidney tumor')),),
  others=(
    (r'kits23\.json|case_\d{5}/instances', 'KiTS23, whose cysts are labelled: the source kits23'),
  ),
)

KITS23 = dataclasses.replace(
  KITS,
  name='kits23',
  description='Kidneys, kidney tumours and cysts before surgery: KiTS23, with the scans of `kits`.',
  expected=489,
  label=(r'(?P<case>case_\d{5})/segmentation\.nii\.gz',),
  partial=(),
  others=((r'kits\.json', 'KiTS19 or KiTS21, other labels of these scans: the source kits'),),
)

_DECATHLON = (
  'M. Antonelli et al., "The Medical Segmentation Decathlon," Nature Communications 13, 2022'
)


def _decathlon(name: str, prefix: str, expected: int, description: str, *classes: str) -> Dataset:
  """One task of the Medical Segmentation Decathlon; classes of the values 1, 2 ..."""
  return Dataset(
    name=f'msd_{name}',
    description=f'{description} Medical Segmentation Decathlon.',
    licence='CC BY-SA 4.0',
    citation=_DECATHLON,
    expected=expected,
    image=rf'imagesTr/(?P<case>{prefix}_\d+)\.nii\.gz',
    label=(rf'labelsTr/(?P<case>{prefix}_\d+)\.nii\.gz',),
    meanings=dict(enumerate(classes, 1)),
  )


DATASETS = (
  LITS,
  KITS,
  KITS23,
  _decathlon('liver', 'liver', 131, 'Liver and its tumours.', 'liver', 'liver tumor'),
  _decathlon('lung', 'lung', 63, 'Lung tumours.', 'lung tumor'),
  _decathlon(
    'pancreas', 'pancreas', 281, 'Pancreas and its tumours.', 'pancreas', 'pancreas tumor'
  ),
  _decathlon(
    'hepatic_vessel', 'hepaticvessel', 303, 'Vessels of the liver and tumours beside them.',
    'hepatic vessel', 'hepatic vessel tumor',
  ),
  _decathlon('spleen', 'spleen', 41, 'Spleen.', 'spleen'),
  _decathlon('colon', 'colon', 126, 'Colon tumours.', 'colon tumor'),
)  # fmt: skip
