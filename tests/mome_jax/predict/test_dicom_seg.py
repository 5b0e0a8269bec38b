"""DICOM SEG of anonymised series: what must be repeated, what may be empty, how it is shown."""

import json
import shutil
import tracemalloc

import dicom_slices
import highdicom
import numpy as np
import pydicom
import pytest
from threshold import Threshold

from input_pipeline.ct import dicom, volume
from mome_jax import predict
from mome_jax.inference.packed_mask import PackedMask
from mome_jax.inference.segmentation import Segmentation
from mome_jax.pictures.colours import palette
from mome_jax.predict import dicom_names, dicom_seg, prompted_model
from mome_jax.predict.request import Options
from tests.mome_jax.predict.test_dicom import Nested, complete

SEG = Options(preview=False, dicom_seg=True)
EMPTY = ('PatientID', 'PatientName', 'PatientBirthDate', 'PatientSex', 'AccessionNumber', 'StudyID',
         'StudyDate', 'StudyTime', 'ReferringPhysicianName')  # fmt: skip


def change(folder, edit):
  for number, path in enumerate(sorted(folder.iterdir())):
    ds = pydicom.dcmread(path)
    edit(number, ds)
    ds.save_as(path)


def run(tmp_path, model=None, prompts=('liver',), **keywords):
  keywords = {'options': SEG, 'progress': False} | keywords
  [result] = predict.predict(
    model or Threshold(), [tmp_path / 'ct'], tmp_path / 'out', prompts, **keywords
  )
  return result


def remove(_, ds):
  for field in (*EMPTY, 'SliceThickness', 'SeriesNumber'):
    if field in ds:
      delattr(ds, field)


def empty(_, ds):
  for field in EMPTY:
    setattr(ds, field, None)
  ds.SeriesNumber = None


@pytest.mark.parametrize('edit', [remove, empty])
def test_fields_that_may_be_empty_are(edit, tmp_path):
  source = complete(tmp_path / 'ct')[0]
  change(tmp_path / 'ct', edit)
  assert run(tmp_path).status == 'ok'
  written = highdicom.seg.segread(tmp_path / 'out' / 'ct_seg.dcm')
  assert all(field in written and not written[field].value for field in EMPTY)
  # The object lies in the space of its series, slice by slice.
  assert written.FrameOfReferenceUID == source.FrameOfReferenceUID
  assert written.StudyInstanceUID == source.StudyInstanceUID
  referenced = {uid for _, _, uid in written.get_source_image_uids()}
  images = [pydicom.dcmread(path) for path in (tmp_path / 'ct').iterdir()]
  places = {ds.SOPInstanceUID: list(ds.ImagePositionPatient) for ds in images}
  assert referenced <= set(places)
  for frame in written.PerFrameFunctionalGroupsSequence:
    [image] = frame.DerivationImageSequence[0].SourceImageSequence
    place = frame.PlanePositionSequence[0].ImagePositionPatient
    np.testing.assert_allclose(place, places[image.ReferencedSOPInstanceUID], atol=1e-4)


def no_frame(_, ds):
  del ds.FrameOfReferenceUID


def two_frames(number, ds):
  ds.FrameOfReferenceUID = f'1.2.{number // 4}'


def one_image(number, ds):
  ds.SOPInstanceUID = '1.2.3'


@pytest.mark.parametrize(
  ('edit', 'reason'),
  [
    (no_frame, 'the series has no FrameOfReferenceUID, which the object must repeat'),
    (one_image, 'slices share a SOPInstanceUID, by which the object tells them'),
    (two_frames, 'the slices differ in their FrameOfReferenceUID, of which the object has one'),
  ],
)
def test_what_cannot_be_made_costs_nothing_else(edit, reason, tmp_path):
  complete(tmp_path / 'ct')
  change(tmp_path / 'ct', edit)
  result = run(tmp_path, options=Options(dicom_seg=True))
  assert result.status == 'incomplete'
  assert f'ct_seg.dcm is not written: {reason}' in result.message
  assert result.labels[0]['volume_ml'] > 0
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
    'ct_preview.png', 'ct_seg.json', 'ct_seg.nii.gz', 'manifest.json', 'report.csv',
    'volumes.csv',
  ]  # fmt: skip


def test_it_is_said_before_and_not_tried_again(tmp_path, monkeypatch, capsys):
  complete(tmp_path / 'ct')
  change(tmp_path / 'ct', no_frame)
  told = []

  def look(logits):
    manifest = json.loads((tmp_path / 'out' / 'manifest.json').read_text())
    told.append(manifest['notes'])
    return logits

  monkeypatch.setattr(prompted_model, 'open_model', lambda path, **_: Threshold(look))
  paths = '--input', str(tmp_path / 'ct'), '--output', str(tmp_path / 'out')
  assert predict.main([*paths, '--dicom-seg', '--quiet']) == 1
  assert 'ct_seg.dcm is not written: the series has no FrameOfReferenceUID' in told[0][0]
  windows = len(told)
  assert predict.main([*paths, '--dicom-seg', '--skip-done', '--quiet']) == 1
  assert len(told) == windows
  printed = capsys.readouterr().err.strip().splitlines()
  assert len(printed) == 2
  assert all(line.startswith('incomplete ct: ct_seg.dcm is not written') for line in printed)


def test_segments_have_the_colours_of_the_pictures(tmp_path):
  complete(tmp_path / 'ct')
  names = ('liver', 'liver tumor')
  run(tmp_path, Nested(), names)
  written = highdicom.seg.segread(tmp_path / 'out' / 'ct_seg.dcm')
  for number, rgb in enumerate(palette(names).values(), 1):
    value = written.get_segment_description(number).RecommendedDisplayCIELabValue
    shown = highdicom.color.CIELabColor.from_dicom_value(value).to_rgb(clip=True)
    np.testing.assert_allclose(shown, 255 * np.array(rgb), atol=1.5)


def test_a_zip_archive_gives_the_same_without_a_warning(tmp_path, recwarn):
  complete(tmp_path / 'ct')
  change(tmp_path / 'ct', remove)
  shutil.make_archive(tmp_path / 'packed', 'zip', tmp_path / 'ct')
  run(tmp_path)
  [result] = predict.predict(
    Threshold(), [tmp_path / 'packed.zip'], tmp_path / 'out', ['liver'], options=SEG, progress=False
  )
  assert result.status == 'ok'
  assert not [w for w in recwarn if 'pydicom' in w.filename]
  folder, packed = (pydicom.dcmread(tmp_path / 'out' / f'{n}_seg.dcm') for n in ('ct', 'packed'))
  assert folder.PixelData == packed.PixelData


def test_names_of_any_script_are_written(tmp_path):
  complete(tmp_path / 'ct', SpecificCharacterSet='ISO_IR 100', PatientName='Müller^Jörg')
  run(tmp_path, prompts=['肝臓\\右'], force=True)
  written = pydicom.dcmread(tmp_path / 'out' / 'ct_seg.dcm')
  assert written.SegmentSequence[0].SegmentLabel == '肝臓/右'
  assert str(written.PatientName) == 'Müller^Jörg'


def of_masks(names, masks):
  """A segmentation of masks that may overlap, (D, H, W) each."""
  shape = masks[0].shape
  free = {}
  for name, mask in zip(names, masks, strict=True):
    free[name] = PackedMask(shape)
    free[name].add(tuple(slice(0, n) for n in shape), mask)
  return Segmentation((), np.zeros(shape, np.uint8), np.zeros((*shape, 1), np.uint8), free=free)


@pytest.mark.parametrize('overlap', [True, False])
def test_bits_of_slices_that_end_within_a_byte(overlap, tmp_path):
  """15 x 7 voxels: the segments' frames follow each other without a gap."""
  rng = np.random.default_rng(0)
  scan = volume.to_canonical(np.zeros((7, 15, 6), np.float32), np.diag([2.0, 2, 3, 1]))
  dicom_slices.as_series(tmp_path / 'ct', scan)
  series = dicom.read_series(tmp_path / 'ct')
  names = [f'class {n}' for n in range(5)]
  owner = rng.integers(0, 8, scan.array.shape)
  masks = [owner >= n if overlap else owner == n for n in range(1, 6)]
  masks[2][..., 1:3] = False  # no frame of it there
  path = tmp_path / 'seg.dcm'
  dicom_seg.write(path, series, of_masks(names, masks), dict.fromkeys(names, (1, 0, 0)))
  written = highdicom.seg.segread(path)
  frames = written.get_pixels_by_source_instance(
    [header.SOPInstanceUID for header in series.headers], assert_missing_frames_are_empty=True
  )
  for n, mask in enumerate(masks):
    expected = volume.from_canonical(mask, series.volume.geometry).T
    np.testing.assert_array_equal(frames[..., n], expected)
  slices = [int(mask.any((0, 1)).sum()) for mask in masks]
  assert written.NumberOfFrames == sum(slices) == 5 * 6 - 2
  assert written.SegmentsOverlap == ('YES' if overlap else 'NO')
  assert len(written.PixelData) == -(-sum(slices) * 15 * 7 // 16) * 2


@pytest.mark.parametrize('told', [None, 0, -3, 5])
def test_slices_are_as_far_apart_as_they_lie_whatever_the_header_says(told, tmp_path):
  """Of -3 dcmqi ends, and of 5 it puts masks where they are not."""
  scan = volume.to_canonical(np.zeros((8, 8, 9), np.float32), np.diag([2.0, 2, 3, 1]))
  dicom_slices.as_series(tmp_path / 'ct', scan)
  change(tmp_path / 'ct', lambda _, ds: setattr(ds, 'SpacingBetweenSlices', told))
  change(tmp_path / 'ct', lambda _, ds: setattr(ds, 'SliceThickness', 5))
  mask = np.zeros(scan.array.shape, bool)
  mask[2:4, 2:4, [1, 6]] = True
  series = dicom.read_series(tmp_path / 'ct')
  dicom_seg.write(tmp_path / 'seg.dcm', series, of_masks(['liver'], [mask]), {'liver': (1, 0, 0)})
  written = pydicom.dcmread(tmp_path / 'seg.dcm')
  [measures] = written.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
  assert (measures.SpacingBetweenSlices, measures.SliceThickness) == (3, 5)


def test_many_segments_take_no_more_memory_than_a_few(tmp_path):
  """Each is in one slice; a byte a voxel of each, and a copy, were 64 maps of the scan."""
  scan = volume.to_canonical(np.zeros((192, 192, 24), np.float32), np.diag([1.0, 1, 3, 1]))
  dicom_slices.as_series(tmp_path / 'ct', scan)
  series = dicom.read_series(tmp_path / 'ct')
  names, masks = [f'class {n}' for n in range(32)], []
  for n in range(32):
    masks.append(np.zeros(scan.array.shape, bool))
    masks[n][40:60, 40:60, n % 24] = True
  made = of_masks(names, masks)
  tracemalloc.start()
  dicom_seg.write(tmp_path / 'seg.dcm', series, made, dict.fromkeys(names, (1, 0, 0)))
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 16 * masks[0].size


def test_segments_are_told_apart_by_what_they_are_called():
  sentence = 'the large irregular lesion that touches the diaphragm and the upper pole of the '
  names = [sentence + 'spleen', sentence + 'left kidney', 'a\tmass\\cyst', 'liver']
  labels = list(dicom_names.labels(names).values())
  assert labels == [sentence[:64], f'{sentence[:60]} (2)', 'a mass/cyst', 'liver']
  assert {len(label) for label in labels[:2]} == {64}
