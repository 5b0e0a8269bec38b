"""Few real CT of chest, abdomen and limbs that public packages carry: a model sees more regions.

Their labels come from hands, rules and models, of one to five patients: enough to train a model
that has seen a chest at all, not to measure one. Sides were checked on overlays of each scan, and
so was what its field of view cannot show.
"""

from input_pipeline.anatomy import TEMPLATE
from input_pipeline.sources.dataset import Dataset

# Beyond the built-in template; NOTE: prepared cases are known by these words.
_TEMPLATE = TEMPLATE.extend(
  [
    {
      'name': 'heart',
      'noun': 'a heart',
      'synonyms': ['cor', 'cardiac silhouette', 'whole heart', 'cardiac chambers and myocardium'],
      'held_out': ['entire heart', 'cardiac muscle and chambers'],
    }
  ]
)
# Label values of TotalSegmentator's version 2, of the structures that the template has. Its femurs
# are whole bones, no heads; its cysts are too small to be sure of: they are plain kidney.
_STRUCTURES = {
  1: 'spleen',
  2: 'right kidney',
  3: 'left kidney',
  4: 'gallbladder',
  5: 'liver',
  6: 'stomach',
  7: 'pancreas',
  8: 'right adrenal gland',
  9: 'left adrenal gland',
  10: 'left lung',
  11: 'left lung',
  12: 'right lung',
  13: 'right lung',
  14: 'right lung',
  15: 'esophagus',
  18: 'intestine',
  19: 'duodenum',
  20: 'colon',
  21: 'bladder',
  22: 'prostate',
  23: 'left kidney',
  24: 'right kidney',
  51: 'heart',
  52: 'aorta',
  63: 'postcava',
  64: 'portal and splenic vein',
  79: 'spinal cord',
}
_HIGHEST = 118  # of its label values: 117 structures, one number is not used
_MEANINGS = {value: _STRUCTURES.get(value) for value in range(1, _HIGHEST + 1)}
_HEAD = ('brainstem', 'parotid')  # above the neck
_CHEST = ('lung', 'esophagus', 'aorta', 'spinal cord')
_ABDOMEN = (
  'liver', 'spleen', 'stomach', 'gallbladder', 'pancreas', 'kidney', 'adrenal gland', 'duodenum',
  'postcava', 'portal and splenic vein', 'hepatic vessel', 'celiac trunk',
)  # fmt: skip
_PELVIS = ('bladder', 'prostate', 'rectum', 'femoral head')
_EVERY = r'[^/]+'

THORAX = Dataset(
  name='thorax',
  description=(
    'Chest CT, 5 patients: lungs by rule, lung tumors by hand. To have seen a chest, not to '
    'measure by.'
  ),
  licence='CC BY 3.0 (of NSCLC-R01-001: ask its collection first); pyradiomics-lung1: BSD-3-Clause',
  citation=(
    'S.G. Armato III et al., "The Lung Image Database Consortium (LIDC) and Image Database '
    'Resource Initiative (IDRI)," Medical Physics 38(2), 2011; G.D. Hugo et al., "4D-Lung," The '
    'Cancer Imaging Archive, 2016; S. Bakr et al., "A radiogenomic dataset of non-small cell lung '
    'cancer," Scientific Data 5, 2018; J.J.M. van Griethuysen et al., "Computational Radiomics '
    'System to Decode the Radiographic Phenotype," Cancer Research 77(21), 2017'
  ),
  expected=5,
  image=r'(?P<case>[^/]+)_ct\.nii\.gz',
  label=(r'(?P<case>[^/]+)_seg\.nii\.gz',),
  # Lymph nodes, which one patient has, are no class of the template.
  meanings={1: 'right lung', 2: 'left lung', 3: 'lung tumor', 4: None},
  # Its left lung collapsed beside the tumor, and the rule left that part out.
  partial=((r'4DLung-113[^/]*\.nii\.gz', ('right lung', 'lung tumor')),),
  absent=(
    (_EVERY, (*_HEAD, *_PELVIS)),
    # The chin is in the two others, and the larynx may be in all but the first.
    (r'(?:4DLung-113|LIDC-IDRI-0001|LIDC-IDRI-0003)[^/]*', ('mandible',)),
    (r'4DLung-113[^/]*', ('larynx',)),
    (r'pyradiomics-lung1[^/]*', ('kidney',)),  # it ends at the diaphragm
  ),
  # The rule left out its lowest three slices, though they show lung.
  slice_ranges=(
    (r'pyradiomics-lung1[^/]*', dict.fromkeys(('right lung', 'left lung'), (12.5, 240.0))),
  ),
  # Both lungs whole, several readers, and of the tumors that are drawn so the largest (7 ml).
  splits=((r'LIDC-IDRI-0003_ct\.nii\.gz', 'validation'), (_EVERY, 'train')),
)

CHEST_ABDOMEN = Dataset(
  name='chest_abdomen',
  description=(
    'One CT of chest and upper abdomen, labels of a model (TotalSegmentator); the patient is one '
    'of `thorax`.'
  ),
  licence='CC BY 3.0 (scan, of LIDC-IDRI)',
  citation=(
    'S.G. Armato III et al., "The Lung Image Database Consortium (LIDC) and Image Database '
    'Resource Initiative (IDRI)," Medical Physics 38(2), 2011; V. Gopalakrishnan and P. Golland, '
    '"Fast auto-differentiable digitally reconstructed radiographs," CLIP workshop, MICCAI 2022; '
    'J. Wasserthal et al., "TotalSegmentator," Radiology: Artificial Intelligence 5(5), 2023'
  ),
  expected=1,
  image=r'(?P<case>[^/]+)_ct\.nii\.gz',
  label=(r'(?P<case>[^/]+)_totalseg117\.nii\.gz',),
  # What the model gave no voxel is not taken for absent, but for bladder and prostate: see below.
  meanings={**_MEANINGS, 4: None, 21: None, 22: None},
  absent=((_EVERY, (*_HEAD, 'mandible', *_PELVIS)),),
  splits=((_EVERY, 'train'),),
  template=_TEMPLATE,
)

TOTALSEGMENTATOR_SAMPLE = Dataset(
  name='totalsegmentator_sample',
  description=(
    'One CT of abdomen and pelvis at 3 mm, the example of TotalSegmentator with the labels of its '
    'fast model.'
  ),
  licence='Apache-2.0',
  citation=(
    'J. Wasserthal et al., "TotalSegmentator: Robust segmentation of 104 anatomic structures in CT '
    'images," Radiology: Artificial Intelligence 5(5), 2023'
  ),
  expected=1,
  image=r'(?P<case>example)_ct\.nii\.gz',
  label=(r'(?P<case>example)_seg_fast_force_split\.nii\.gz',),
  # The esophagus got no voxel though a piece of it is there, the pancreas half of its own.
  meanings={**_MEANINGS, 7: None, 15: None, 51: None},
  absent=((_EVERY, (*_HEAD, 'mandible', 'larynx', 'heart')),),
  splits=((_EVERY, 'train'),),
  template=_TEMPLATE,
)

SARCOMA = Dataset(
  name='sarcoma',
  description=(
    'CT of arm and thighs, 4 patients, cut out around a soft tissue sarcoma, which is no class: to '
    'have seen scans without any organ of neck, chest and abdomen.'
  ),
  licence='CC BY 3.0 (of Soft-tissue-Sarcoma, The Cancer Imaging Archive)',
  citation=(
    'M. Vallieres et al., "A radiomics model from joint FDG-PET and MRI texture features for the '
    'prediction of lung metastases in soft-tissue sarcomas of the extremities," Physics in '
    'Medicine and Biology 60(14), 2015; A. Zwanenburg et al., "The Image Biomarker Standardization '
    'Initiative," Radiology 295(2), 2020'
  ),
  expected=4,
  image=r'(?P<case>STS_\d{3})(?:/|_)CT_image\.nii\.gz',
  label=(r'(?P<case>STS_\d{3})(?:/|_)CT_mask\.nii\.gz',),
  meanings={1: None},
  # Not what a pelvis shows: STS_012 ends in one.
  absent=((_EVERY, (*_HEAD, 'mandible', 'larynx', *_CHEST, *_ABDOMEN)),),
  splits=((r'STS_0(?:08|51)(?:/|_)CT_image\.nii\.gz', 'validation'), (_EVERY, 'train')),
)

DATASETS = (THORAX, CHEST_ABDOMEN, TOTALSEGMENTATOR_SAMPLE, SARCOMA)
