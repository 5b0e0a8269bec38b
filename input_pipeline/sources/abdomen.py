"""Datasets that label many organs of the abdomen and the trunk.

Licences as far as known; the terms that come with the download decide.
"""

import pathlib
from collections.abc import Sequence

from input_pipeline import errors
from input_pipeline.anatomy import TEMPLATE
from input_pipeline.files import text_files
from input_pipeline.sources import files
from input_pipeline.sources.base import SourceError
from input_pipeline.sources.dataset import Dataset

_BTCV_ORGANS = dict(enumerate(TEMPLATE.names()[:14], 1))
_GIBSON = (
  'E. Gibson et al., "Automatic multi-organ segmentation on abdominal CT with dense V-networks," '
  'IEEE Transactions on Medical Imaging 37(8), 2018; labels: doi.org/10.5281/zenodo.1169361'
)
# What Zenodo 1169361 contours outside the training set of BTCV.
_EIGHT = (
  'spleen', 'left kidney', 'gallbladder', 'esophagus', 'liver', 'stomach', 'pancreas', 'duodenum',
)  # fmt: skip

BTCV = Dataset(
  name='btcv',
  description='Abdomen, 13 organs; with the labels of Zenodo 1169361 also the duodenum.',
  licence='scans: terms of Synapse syn3193805; labels of Zenodo: CC BY 4.0',
  citation=(
    'B. Landman et al., "MICCAI multi-atlas labeling beyond the cranial vault," 2015, '
    f'doi.org/10.7303/syn3193805; {_GIBSON}'
  ),
  expected=47,
  image=r'img(?P<case>\d{4})\.nii\.gz',
  label=(
    r'label_btcv_multiorgan/label(?P<case>\d{4})\.nii\.gz',
    r'label(?:sTr)?/label(?P<case>\d{4})\.nii\.gz',  # labelsTr: as tutorials of MONAI have them
  ),
  meanings=_BTCV_ORGANS,
  partial=(
    # Of these scans, the challenge's test set, Zenodo alone has labels, whatever their folder.
    (r'label00[6-8]\d\.nii\.gz', _EIGHT),
    (r'label(?:sTr)?/label\d{4}\.nii\.gz', TEMPLATE.names()[:13]),
  ),
)

PANCREAS_CT = Dataset(
  name='pancreas_ct',
  description='Abdomen of healthy kidney donors and others, eight organs; DICOM or NIfTI scans.',
  licence='scans: CC BY 3.0; labels: CC BY 4.0',
  citation=(
    'H. Roth et al., "Data from Pancreas-CT," The Cancer Imaging Archive, 2016, '
    f'doi.org/10.7937/K9/TCIA.2016.tNB1kqBU; {_GIBSON}'
  ),
  expected=42,
  image=r'PANCREAS_(?P<case>\d{4})(?:\.nii(?:\.gz)?)?',
  label=(r'label_tcia_multiorgan/label(?P<case>\d{4})\.nii\.gz',),
  meanings={
    value: name if name in _EIGHT else None for value, name in enumerate(TEMPLATE.names()[:14], 1)
  },
)

WORD = Dataset(
  name='word',
  description='Whole abdomen before radiotherapy, 16 organs.',
  licence='non-commercial research, on application to the authors',
  citation=(
    'X. Luo et al., "WORD: A large scale dataset, benchmark and clinical applicable study for '
    'abdominal organ segmentation from CT image," Medical Image Analysis 82, 2022'
  ),
  expected=120,
  image=r'images(?:Tr|Val|Ts)/(?P<case>word_\d{4})\.nii\.gz',
  label=(r'labels(?:Tr|Val|Ts)/(?P<case>word_\d{4})\.nii\.gz',),
  meanings=dict(
    enumerate(
      (
        'liver', 'spleen', 'left kidney', 'right kidney', 'stomach', 'gallbladder', 'esophagus',
        'pancreas', 'duodenum', 'colon', 'intestine', 'adrenal gland', 'rectum', 'bladder',
        'left femoral head', 'right femoral head',
      ),
      1,
    )
  ),
  splits=(
    (r'imagesTr/[^/]*', 'train'),
    (r'imagesVal/[^/]*', 'validation'),
    (r'imagesTs/[^/]*', 'test'),
  ),
)  # fmt: skip

ABDOMENCT_1K = Dataset(
  name='abdomenct_1k',
  description='Abdomen from five datasets and new hospitals: liver, kidneys, spleen, pancreas.',
  licence='labels: CC BY 4.0; scans: those of the datasets they come from',
  citation=(
    'J. Ma et al., "AbdomenCT-1K: Is abdominal organ segmentation a solved problem?," IEEE '
    'Transactions on Pattern Analysis and Machine Intelligence 44(10), 2022'
  ),
  expected=1000,
  image=r'(?P<case>Case_\d{5})_0000\.nii\.gz',
  label=(r'(?P<case>Case_\d{5})\.nii\.gz',),
  meanings={1: 'liver', 2: 'kidney', 3: 'spleen', 4: 'pancreas'},
  same={'Case_00928': 'Case_00297'},  # github.com/JunMa11/AbdomenCT-1K/issues/28
)

_AMOS_PATIENTS = 'labeled_data_meta_0000_0599.csv'


def _sexes_of_amos(paths: Sequence[pathlib.Path]) -> dict[str, str]:
  """Case -> 'M' or 'F', of the table of patients, a download of its own.

  Raises:
    SourceError: if it lacks a column, or a case in it is no number.
  """
  path = next((path for path in paths if path.name == _AMOS_PATIENTS), None)
  if path is None:
    files.note(
      f'amos22: no {_AMOS_PATIENTS} (zenodo.org/records/7262581) in the folder, so that nothing '
      'tells a prostate from a uterus: it is not labelled in any scan'
    )
    return {}
  columns, rows = text_files.read_csv(path, ',')
  if missing := {'amos_id', "Patient's Sex"} - set(columns):
    raise SourceError(f'{path}: no column {sorted(missing)[0]!r}; download it again')
  try:
    return {f'amos_{int(row["amos_id"]):04d}': row["Patient's Sex"] for row in rows}
  except ValueError as error:
    raise SourceError(f'{path}: amos_id: {errors.one_line(error)}; download it again') from error


AMOS22 = Dataset(
  name='amos22',
  description='Abdomen with disease from several scanners, 15 organs; its MRI is left out.',
  licence='CC BY 4.0',
  citation=(
    'Y. Ji et al., "AMOS: A large-scale abdominal multi-organ benchmark for versatile medical '
    'image segmentation," NeurIPS Datasets and Benchmarks, 2022'
  ),
  expected=300,  # 200 in imagesTr, 100 in imagesVa; those of imagesTs have no labels
  # Numbers from 500 on are MRI.
  image=r'images(?:Tr|Va)/(?P<case>amos_0[0-4]\d\d)\.nii\.gz',
  label=(r'labels(?:Tr|Va)/(?P<case>amos_0[0-4]\d\d)\.nii\.gz',),
  meanings=dict(
    enumerate(
      (
        *TEMPLATE.names()[:9], 'pancreas', 'right adrenal gland', 'left adrenal gland', 'duodenum',
        'bladder', 'prostate',
      ),
      1,
    )
  ),
  of_men=('prostate',),  # the same value is the uterus of women
  sexes=_sexes_of_amos,
  splits=((r'imagesTr/[^/]*', 'train'), (r'imagesVa/[^/]*', 'validation')),
)  # fmt: skip

ABDOMENCT_12ORGAN = Dataset(
  name='abdomenct_12organ',
  description='Fifty scans of AbdomenCT-1K with 12 organs.',
  licence='labels: CC BY 4.0; scans: those of the datasets they come from',
  citation=ABDOMENCT_1K.citation,
  expected=50,
  image=r'(?P<case>Organ12_\d{4})_0000\.nii\.gz',
  label=(r'(?P<case>Organ12_\d{4})\.nii\.gz',),
  meanings=dict(
    enumerate(
      (
        'liver', 'kidney', 'spleen', 'pancreas', 'aorta', 'postcava', 'stomach', 'gallbladder',
        'esophagus', 'right adrenal gland', 'left adrenal gland', 'celiac trunk',
      ),
      1,
    )
  ),
)  # fmt: skip

CT_ORG = Dataset(
  name='ct_org',
  description='Abdomen and whole body, many with metastases: liver, bladder, lungs, kidneys.',
  licence='CC BY 3.0',
  citation=(
    'B. Rister et al., "CT-ORG, a new dataset for multiple organ segmentation in computed '
    'tomography," Scientific Data 7, 2020, doi.org/10.7937/tcia.2019.tt7f4v7o'
  ),
  expected=140,
  image=r'volume-(?P<case>\d+)\.nii\.gz',
  label=(r'labels-(?P<case>\d+)\.nii\.gz',),
  # Bone and brain are declared, and not used.
  meanings={1: 'liver', 2: 'bladder', 3: 'lung', 4: 'kidney', 5: None, 6: None},
  splits=((r'volume-(?:\d|1\d|20)\.nii\.gz', 'test'),),
  shares={'train': 0.9, 'validation': 0.1},
)

DATASETS = (BTCV, PANCREAS_CT, WORD, ABDOMENCT_1K, AMOS22, CT_ORG, ABDOMENCT_12ORGAN)
