"""What --skip-done keeps: results that the same request would make again, and nothing else."""

import dataclasses
import hashlib
import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
import tqdm
from threshold import Threshold, save_scan

from input_pipeline.ct import volume
from mome_jax import predict
from mome_jax.plausibility import record
from mome_jax.predict import prompted_model, provenance, segment_scans
from mome_jax.predict.request import Options, Request


class Other(Threshold):
  """The same network with other weights, or another text model."""

  def __init__(self, weights='0' * 64, text=''):
    super().__init__()
    self._weights, self._text = weights, text

  def fingerprint(self):
    return self._weights

  def text_fingerprint(self, prompts):
    return self._text + super().text_fingerprint(prompts)


@pytest.fixture
def call(tmp_path):
  """call(model, ...) -> the result of tmp_path/a.nii.gz, kept where it can be."""
  save_scan(tmp_path / 'a.nii.gz')

  def predict_again(model=None, prompts=None, **keywords):
    keywords = {'options': Options(preview=False), 'existing': 'skip', 'progress': False} | keywords
    where = [tmp_path / 'a.nii.gz'], tmp_path / 'out'
    [result] = predict.predict(model or Threshold(), *where, prompts, **keywords)
    return result

  return predict_again


def test_the_same_request_is_kept(call, tmp_path):
  first = call()
  assert not first.kept
  again = call()
  assert (again.status, again.kept, again.seconds) == ('skipped', True, 0)
  assert list(again.labels) == list(first.labels)
  # Neither time nor place nor name of the scan's file is part of what it holds.
  os.utime(tmp_path / 'a.nii.gz', (1, 1))
  assert call().status == 'skipped'


def test_results_do_not_go_to_a_folder_called_as_a_bucket(call, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(predict.PredictError, match='^gs://bucket/out is in a bucket; give a place'):
    predict.predict(Threshold(), [tmp_path / 'a.nii.gz'], 'gs://bucket/out', progress=False)
  assert [path.name for path in tmp_path.iterdir()] == ['a.nii.gz']


def test_the_bar_is_of_what_is_made(tmp_path, monkeypatch):
  """Of three scans one is kept, and one cannot be read."""
  states = []

  class Bar(tqdm.tqdm):
    def update(self, n=1):
      super().update(n)
      states.append((self.n, self.total))

  monkeypatch.setattr(segment_scans, 'progress_bar', Bar)
  (tmp_path / 'in').mkdir()
  for name in 'ac':
    save_scan(tmp_path / 'in' / f'{name}.nii.gz')
  keywords = {'options': Options(preview=False), 'existing': 'skip'}
  where = [tmp_path / 'in'], tmp_path / 'out'
  predict.predict(Threshold(), *where, **keywords)
  (tmp_path / 'in' / 'c.nii.gz').unlink()
  (tmp_path / 'in' / 'b.nii.gz').write_bytes(b'no scan')
  save_scan(tmp_path / 'in' / 'd.nii.gz')
  states.clear()
  results = predict.predict(Threshold(), *where, **keywords)
  assert [result.status for result in results] == ['skipped', 'failed', 'ok']
  assert {total for _, total in states} == {2} and states[-1][0] == pytest.approx(2)
  assert all(n <= 2 + 1e-6 for n, _ in states)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'model': Other(weights='1' * 64)}, 'other weights'),
    ({'model': Other(text='T5')}, 'another text model'),
    ({'prompts': ['liver', 'hepar']}, 'other prompts'),
    ({'prompts': ['spleen', 'liver']}, 'other prompts'),
    ({'rules': ['largest']}, 'postprocess [], now ["largest"]'),
    ({'assume_spacing': (1, 2, 3)}, 'assume_spacing null, now [1.0, 2.0, 3.0]'),
    ({'volume_number': 0}, 'volume null, now 0'),
  ],
)
def test_another_request_is_told_from_it(call, tmp_path, change, message):
  call()
  legend = (tmp_path / 'out' / 'a_seg.json').read_bytes()
  result = call(**change)
  assert (result.status, result.kept) == ('failed', False)
  assert result.message == (
    f'{tmp_path}/out/a_seg.json: made with {message}; pass --overwrite, or change --output'
  )
  assert (tmp_path / 'out' / 'a_seg.json').read_bytes() == legend


def test_numbers_are_compared_however_they_are_written():
  assert not provenance.differences({'spacing': [1, 2, 3]}, {'spacing': (1.0, 2.0, 3.0)})


def test_fast_is_told_apart(call, monkeypatch):
  monkeypatch.setattr(
    Threshold, 'segmenter', lambda self, *a, overlap=None, _make=Threshold.segmenter, **k:
    with_overlap(_make(self, *a, **k), overlap),
  )  # fmt: skip
  call()
  assert 'made with overlap 0.5, now 0.25' in call(fast=True).message


def with_overlap(segmenter, overlap):
  settings = segmenter.settings
  tiling = dataclasses.replace(settings.tiling, overlap=0.5 if overlap is None else overlap)
  segmenter.settings = dataclasses.replace(settings, tiling=tiling)
  return segmenter


def test_a_replaced_scan_is_told_from_it(call, tmp_path):
  call()
  before = os.stat(tmp_path / 'a.nii.gz')
  content = bytearray((tmp_path / 'a.nii.gz').read_bytes())
  content[4] ^= 1  # the time in the header of gzip: as long as before, and as old
  (tmp_path / 'a.nii.gz').write_bytes(content)
  os.utime(tmp_path / 'a.nii.gz', ns=(before.st_atime_ns, before.st_mtime_ns))
  assert 'a_seg.json: made with another scan; pass' in call().message


def test_legends_of_earlier_versions_and_damaged_ones_are_not_trusted(call, tmp_path):
  call()
  path = tmp_path / 'out' / 'a_seg.json'
  legend = json.loads(path.read_text())
  del legend['request']
  for text, message in {
    json.dumps(legend): 'made by an earlier version',
    '{"request": {}}': 'cannot be read as a legend',
    '[]': 'cannot be read as a legend',
    'x': 'cannot be read as a legend',
  }.items():
    path.write_text(text)
    result = call()
    assert result.status == 'failed'
    assert message in result.message


def test_without_a_legend_nothing_of_an_earlier_run_stays(call, tmp_path):
  call(Other(weights='1' * 64), options=Options(preview=False, masks=True))
  (tmp_path / 'out' / 'a_seg.json').unlink()  # of a run that was cut off
  assert call().status == 'ok'
  assert not (tmp_path / 'out' / 'a_masks').exists()


def test_further_outputs_of_the_same_request_join_those_that_are_there(call, tmp_path):
  call(options=Options(preview=False, masks=True))
  result = call(options=Options(preview=False, probabilities=True))
  assert (result.status, result.kept) == ('ok', False)
  for folder in ('a_masks', 'a_probabilities'):
    assert sorted(os.listdir(tmp_path / 'out' / folder)) == ['liver.nii.gz', 'spleen.nii.gz']
  assert masks_of(tmp_path)[1] == ['a_masks/liver.nii.gz', 'a_masks/spleen.nii.gz']


def masks_of(tmp_path):
  """Files of masks, and those that the legend names."""
  rows = json.loads((tmp_path / 'out' / 'a_seg.json').read_text())['labels']
  return sorted(os.listdir(tmp_path / 'out' / 'a_masks')), [row['mask'] for row in rows]


def test_masks_of_classes_join_those_of_free_text(call, tmp_path):
  ask = {'prompts': ['liver', 'pizza'], 'force': True}
  call(**ask)
  assert masks_of(tmp_path) == (['200_pizza.nii.gz'], [None, 'a_masks/200_pizza.nii.gz'])
  assert call(**ask).status == 'skipped'
  ask['options'] = Options(preview=False, masks=True)
  assert call(**ask).status == 'ok'
  everything = (
    ['200_pizza.nii.gz', 'liver.nii.gz'],
    ['a_masks/liver.nii.gz', 'a_masks/200_pizza.nii.gz'],
  )
  assert masks_of(tmp_path) == everything
  assert call(**ask).status == 'skipped'
  # What extends them leaves them there, and in the legend.
  ask['options'] = Options(preview=False, more=('totalsegmentator',))
  assert call(**ask).status == 'ok'
  assert masks_of(tmp_path) == everything


def test_masks_that_another_record_judged_are_told_from_it(call, monkeypatch):
  call()
  looks = [record.Record((4.0, 4.0, 4.0), 12, 3.5, {}, {})]
  monkeypatch.setattr(prompted_model.record, 'read', lambda folder: looks)
  assert 'made with another record of plausibility; pass' in call().message


def test_a_model_without_a_record_goes_on_with_results_of_before_masks_were_removed(call, tmp_path):
  call()
  path = tmp_path / 'out' / 'a_seg.json'
  legend = json.loads(path.read_text())
  del legend['request']['keep_absent']
  path.write_text(json.dumps(legend))
  assert [call(keep_absent=keep).status for keep in (False, True)] == ['skipped', 'skipped']


def test_a_record_without_few_labels_is_the_one_of_before(call, tmp_path, monkeypatch):
  one = record.Record((4.0, 4.0, 4.0), 12, 3.5, {}, {})
  fields = dataclasses.asdict(one)
  del fields['few']
  text = json.dumps([fields], sort_keys=True)  # as versions that did not know `few`
  monkeypatch.setattr(prompted_model.record, 'read', lambda folder: [one])
  call()
  looks = json.loads((tmp_path / 'out' / 'a_seg.json').read_text())['request']['looks']
  assert looks == hashlib.sha256(text.encode()).hexdigest()


def test_what_competes_with_no_target_is_no_other_text(tmp_path):
  """Sides are checked by classes that free text does not compete with."""
  scan = save_scan(tmp_path / 'scan.nii.gz')
  plain, checked = (
    prompted_model.ask(
      Threshold(), Request([scan], ['pizza'], force=True, check_sides=check_sides)
    ).provenance
    for check_sides in (False, True)
  )
  assert provenance.differences(plain, checked) == []


def spleen(logits):
  """Logits of two classes in those of one: liver above 0 HU, spleen about -200 HU."""
  window = logits[:, 0] / 40 + 0.5  # back to the channel
  return np.stack([logits[:, 0], 5 - np.abs(window - 0.3) * 100], 1)


def test_a_kept_scan_that_is_mirrored_is_told(tmp_path, monkeypatch, capsys):
  array = np.full((40, 20, 20), -1000, np.int16)
  array[24:36, 4:16, 4:16] = 100  # liver, on the patient's left
  array[5:10, 4:16, 4:16] = -200  # spleen
  nib.save(nib.Nifti1Image(array, np.diag([-3.0, 3, 3, 1])), tmp_path / 'a.nii')
  monkeypatch.setattr(prompted_model, 'open_model', lambda path, **_: Threshold(spleen))
  arguments = '--input', str(tmp_path / 'a.nii'), '--output', str(tmp_path / 'out'), '--no-preview'
  assert predict.main(arguments) == 0  # nobody asked
  assert predict.main([*arguments, '--skip-done']) == 0
  assert predict.main([*arguments, '--skip-done', '--check-sides']) == 3
  assert '0 of 1 scans segmented, 1 were done' in capsys.readouterr().out
  assert 'mirrored' in (tmp_path / 'out' / 'report.csv').read_text().splitlines()[1]


def test_series_are_known_by_their_slices(tmp_path):
  from tests.mome_jax.predict.test_real_dicom import as_series

  scan = volume.to_canonical(
    np.random.default_rng(0).integers(-900, 900, (9, 8, 5)).astype(np.float32),
    np.diag([3, 3, 3, 1]),
  )
  as_series(tmp_path / 'ct', scan)

  def again(path):
    options = {'options': Options(preview=False), 'existing': 'skip', 'progress': False}
    [result] = predict.predict(Threshold(), [path], tmp_path / 'out', **options)
    return result

  assert again(tmp_path / 'ct').status == 'ok'
  assert again(tmp_path / 'ct').status == 'skipped'
  # The same files under other names, elsewhere or packed.
  for number, path in enumerate(sorted((tmp_path / 'ct').iterdir())):
    path.rename(path.with_name(f'z{9 - number}.dcm'))
  (tmp_path / 'elsewhere').mkdir()
  shutil.make_archive(tmp_path / 'elsewhere' / 'ct', 'zip', tmp_path / 'ct')
  assert again(tmp_path / 'ct').status == 'skipped'
  assert again(tmp_path / 'elsewhere' / 'ct.zip').status == 'skipped'
  shutil.rmtree(tmp_path / 'ct')
  as_series(tmp_path / 'ct', volume.to_canonical(scan.array + 1, np.diag([3, 3, 3, 1])))
  assert 'made with another scan' in again(tmp_path / 'ct').message
