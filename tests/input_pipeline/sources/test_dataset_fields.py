"""Fields of `dataset.json` that nothing reads."""

import pytest

from input_pipeline import sources
from tests.input_pipeline.sources import test_nifti_folder, test_rtstruct_folder
from tests.input_pipeline.sources.test_nifti_folder import INDEX

# What nnU-Net's `generate_dataset_json` writes, and the dataset.json of MSD and of AMOS.
NNUNET = (
  'channel_names', 'labels', 'numTraining', 'file_ending', 'name', 'reference', 'release',
  'licence', 'description', 'overwrite_image_reader_writer', 'regions_class_order', 'citation',
  'converted_by', 'license', 'relase', 'tensorImageSize', 'modality', 'numTest', 'training', 'test',
  'author', 'numValidation', 'validation',
)  # fmt: skip
VALUES = {'modality': {'0': 'CT'}, 'file_ending': '.nii.gz', 'regions_class_order': [1, 2]}


def listed(folder, name):
  return sources.get_source(name).listed(str(folder))


def contours(folder, **fields):
  test_rtstruct_folder.patient(folder / 'p1')
  test_rtstruct_folder.declare(folder, **fields)
  return listed(folder, 'rtstruct_folder')


def label_maps(folder, **fields):
  return listed(test_nifti_folder.write(folder, INDEX | fields), 'nifti_folder')


@pytest.mark.parametrize(
  ('layout', 'field', 'message'),
  [
    (contours, 'roi', r"unknown fields \['roi'\]; did you mean rois\?"),
    (contours, 'ignore', r'did you mean ignored\?'),
    (contours, 'partials', r'did you mean partial\?'),
    (contours, 'labels', r"unknown fields \['labels'\]; known: rois, partial, "),
    (label_maps, 'ignore', r"unknown fields \['ignore'\]; did you mean ignored\?"),
    (label_maps, 'split', r'did you mean splits\?'),
    (label_maps, 'missing', r'did you mean missing_is\?'),
    (label_maps, 'new_class', r'did you mean new_classes\?'),
    (label_maps, 'partial', 'fields of rtstruct_folder, which label maps do not have: partial'),
    (label_maps, 'rois', 'fields of rtstruct_folder'),
  ],
)
def test_fields_that_would_do_nothing_are_refused(layout, field, message, tmp_path):
  with pytest.raises(sources.SourceError, match=rf'dataset\.json: .*{message}'):
    layout(tmp_path, **{field: []})


def test_all_of_them_are_named(tmp_path):
  with pytest.raises(sources.SourceError) as caught:
    contours(tmp_path, roi={}, ignore=[], partials=[])
  assert "['roi', 'ignore', 'partials']; did you mean rois? did you mean ignored?" in str(
    caught.value
  )


def test_fields_of_nnunet_pass_and_others_are_told(tmp_path):
  fields = {name: VALUES.get(name, 'x') for name in NNUNET if name not in INDEX}
  assert label_maps(tmp_path, **fields)[1] == []
  cases, notes = label_maps(tmp_path, **fields, scanner='x', folds=5)
  assert len(cases) == 3
  assert notes == [f'{tmp_path}/dataset.json: fields that are not read: scanner, folds']


def test_the_documented_fields_pass(tmp_path):
  fields = {'rois': {}, 'ignored': [], 'new_classes': [], 'partial': [], 'structure_set': '*',
            'missing_is': 'absent', 'supervised': {}, 'absent': [], 'patients': {}, 'splits': {},
            'licence': 'ours', 'citation': 'x'}  # fmt: skip
  assert len(contours(tmp_path, **fields)[0]) == 1
