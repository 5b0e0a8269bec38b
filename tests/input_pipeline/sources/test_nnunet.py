"""What nnU-Net's dataset.json says, in the source nifti_folder."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from input_pipeline import sources
from input_pipeline.ct import itk_image, slicer_segments, volume
from input_pipeline.sources.base import SourceError
from tests.input_pipeline.sources import test_nifti_folder
from tests.input_pipeline.sources.test_nifti_folder import INDEX, body, cases_of, fails


def write(folder, **fields):
  return test_nifti_folder.write(folder, INDEX | fields)


def convert(folder, ending):
  """The same dataset in another format."""
  for path in sorted(folder.glob('*Tr/*.nii.gz')):
    image = sitk.ReadImage(path)
    sitk.WriteImage(image, path.with_name(path.name.removesuffix('.nii.gz') + ending))
    path.unlink()


@pytest.mark.parametrize('ending', ['.nrrd', '.mha'])
def test_other_formats_are_the_same_dataset(ending, tmp_path):
  plain, other = tmp_path / 'plain', tmp_path / 'other'
  write(plain)
  write(other, file_ending=ending, channel_names={'0': 'CT'})
  convert(other, ending)
  assert [case.name for case in cases_of(other)] == ['a', 'b', 'c'] and not fails(other)
  for ours, theirs in zip(cases_of(other), cases_of(plain), strict=True):
    one, two = ours.load(), theirs.load()
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.codes, two.codes)
    np.testing.assert_allclose(one.geometry.affine, two.geometry.affine, atol=1e-5)
    assert (ours.split, ours.supervised) == (theirs.split, theirs.supervised)


def test_an_ending_that_is_not_that_of_the_files_is_told(tmp_path):
  write(tmp_path, file_ending='.nrrd')
  with pytest.warns(UserWarning, match='"file_ending" is .\\.nrrd., but 6 files end otherwise'):
    cases_of(tmp_path)


@pytest.mark.parametrize('channels', [{'0': 'T2'}, {'0': 'noNorm', '1': 'CT'}, ['CT'], {}])
def test_channels_without_ct_are_refused(channels, tmp_path):
  write(tmp_path, channel_names=channels)
  with pytest.raises(SourceError, match='CT'):
    cases_of(tmp_path)


@pytest.mark.parametrize('field', ['channel_names', 'modality'])
def test_the_ct_of_several_channels(field, tmp_path):
  index = {key: value for key, value in INDEX.items() if key != 'channel_names'}
  test_nifti_folder.write(tmp_path, index | {field: {'0': 'CT', '1': 'PET'}})
  for name in 'abc':
    (tmp_path / f'imagesTr/{name}_0001.nii.gz').write_bytes(b'not looked at')
  with pytest.warns(UserWarning, match='channels besides the CT, left out: 3'):
    assert [case.name for case in cases_of(tmp_path)] == ['a', 'b', 'c']


def test_a_dollar_in_the_name_of_the_dataset_s_own_folder_is_no_variable(tmp_path):
  folder = tmp_path / 'study$1'
  folder.mkdir()
  write(folder)
  entry = {'images': ['imagesTr/gone_0000.nii.gz'], 'label': 'labelsTr/a.nii.gz'}
  (folder / 'dataset.json').write_text(json.dumps(INDEX | {'dataset': {'a': entry}}))
  (case,) = cases_of(folder)
  with pytest.raises(SourceError, match=r'gone_0000\.nii\.gz: (?!.*environment variable)'):
    case.load()


def test_cases_that_lie_where_an_environment_variable_says(tmp_path, monkeypatch):
  write(tmp_path)
  (tmp_path / 'raw').mkdir()
  for part in ('imagesTr', 'labelsTr'):
    (tmp_path / part).rename(tmp_path / 'raw' / part)
  table = {
    name: {
      'images': [f'$nnUNet_raw/imagesTr/{name}_0000.nii.gz'],
      'label': f'${{nnUNet_raw}}/labelsTr/{name}.nii.gz',
    }
    for name in 'abc'
  }
  (tmp_path / 'dataset.json').write_text(json.dumps(INDEX | {'dataset': table}))
  monkeypatch.setenv('nnUNet_raw', str(tmp_path / 'raw'))
  cases = cases_of(tmp_path)
  assert [case.name for case in cases] == ['a', 'b', 'c'] and not fails(tmp_path)
  assert cases[0].load().codes.any()
  monkeypatch.delenv('nnUNet_raw')
  with pytest.raises(SourceError, match='set the environment variable'):
    cases_of(tmp_path)[0].load()


def test_cases_that_lie_elsewhere(tmp_path):
  write(tmp_path)
  (tmp_path / 'imagesTr').rename(tmp_path / 'scans')
  (tmp_path / 'labelsTr').rename(tmp_path / 'maps')
  table = {
    name: {'images': [f'scans/{name}_0000.nii.gz'], 'label': str(tmp_path / f'maps/{name}.nii.gz')}
    for name in 'abc'
  }
  table['c']['images'] = ['scans/gone.nii.gz']
  (tmp_path / 'dataset.json').write_text(json.dumps(INDEX | {'dataset': table}))
  cases = {case.name: case for case in cases_of(tmp_path)}
  np.testing.assert_array_equal(cases['a'].load().image.shape, cases['b'].load().image.shape)
  with pytest.raises(SourceError, match=r'gone\.nii\.gz: cannot be opened'):
    cases['c'].load()
  (tmp_path / 'dataset.json').write_text(json.dumps(INDEX | {'dataset': {'a': {'images': 'x'}}}))
  with pytest.raises(SourceError, match='dataset of a: expected "images"'):
    cases_of(tmp_path)


def test_segmentations_of_slicer(tmp_path):
  write(tmp_path)
  _, label = body()
  values = {name: value for name, value in INDEX['labels'].items() if np.isscalar(value) and value}
  grid = volume.read_image(tmp_path / 'imagesTr/a_0000.nii.gz').geometry
  for case in 'ab':
    (tmp_path / f'labelsTr/{case}.nii.gz').unlink()
    declared = [slicer_segments.Segment(n, 0, int(v)) for n, v in values.items()]
    if case == 'b':
      declared[0] = slicer_segments.Segment(declared[0].name, 0, 99)
    colours = dict.fromkeys(values, (1, 0, 0))
    header = slicer_segments.header(declared, colours, grid.shape)
    part = volume.to_canonical(label, grid.affine).array
    itk_image.write(tmp_path / f'labelsTr/{case}.seg.nrrd', part, grid, header)
  cases = {case.name: case for case in sources.get_source('nifti_folder').cases(str(tmp_path))}
  np.testing.assert_array_equal(cases['a'].load().codes, cases['c'].load().codes)
  with pytest.raises(SourceError, match='has value 99, in dataset.json'):
    cases['b'].load()
