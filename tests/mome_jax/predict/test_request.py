"""What is asked for: from the keywords of the public call to one object."""

import dataclasses
import inspect
import json

import numpy as np
import pytest
from threshold import Threshold, save_scan

from input_pipeline.ct import volume
from mome_jax import predict
from mome_jax.errors import UserError
from mome_jax.predict import segment_scans
from mome_jax.predict.request import Options, Request, make_targets


def test_every_keyword_of_the_call_reaches_its_field(monkeypatch, tmp_path):
  requests = []
  monkeypatch.setattr(segment_scans, 'segment', lambda load, request, *_, **__:
                      requests.append(request))  # fmt: skip
  names = [field.name for field in dataclasses.fields(Request)]
  texts = {name: f'a {name}' for name in names}
  numbers = {'assume_spacing': (1.0, 2.0, 3.0), 'volume_number': 4}
  predict.predict('model', output=tmp_path, **(texts | numbers))
  several = {name: (texts[name],) for name in ('inputs', 'prompts', 'rules')}  # a text is one item
  assert dataclasses.asdict(requests[0]) == texts | several | numbers


def test_the_call_and_the_request_have_the_same_defaults():
  parameters = inspect.signature(predict.predict).parameters
  for field in dataclasses.fields(Request)[1:]:
    assert parameters[field.name].default == field.default, field.name


def test_what_python_has_for_lists_and_numbers(tmp_path):
  scan = save_scan(tmp_path / 'a.nii.gz')
  [result] = predict.predict(
    Threshold(),
    (path for path in [scan]),
    tmp_path / 'out',
    prompts=(text for text in ('liver', 'spleen')),
    rules=iter(['largest']),
    assume_spacing=np.full(3, 3, np.float32),
  )
  assert result.status == 'ok' and [row['name'] for row in result.labels] == ['liver', 'spleen']
  legend = json.loads((tmp_path / 'out/a_seg.json').read_text())
  assert legend['request']['assume_spacing'] == [3, 3, 3]
  request = Request(tmp_path.glob('*.nii.gz'), volume_number=np.int64(1))
  assert request.inputs == (scan,) and json.dumps(request.volume_number) == '1'
  with pytest.raises(TypeError, match='integer'):  # not the volume before
    Request((), volume_number=1.9)


@pytest.mark.parametrize('spacing', [(1, 1), (-1, 1, 1), (1, 0, 1), (1, 1, float('nan')), 1, 'x'])
def test_a_spacing_that_is_none(spacing, tmp_path):
  """A negative one mirrored the scan."""
  with pytest.raises(UserError, match=r'^assume_spacing=.*: expected three mm above 0'):
    Request((), assume_spacing=spacing)
  with pytest.raises(UserError, match='expected three mm above 0'):
    volume.read_image(save_scan(tmp_path / 'a.nii.gz'), assume_spacing=spacing)


def test_a_request_is_done_by_any_model(tmp_path):
  request = Request([save_scan(tmp_path / 'a.nii.gz')], ['liver'], Options(preview=False))
  empty = lambda: Threshold(lambda logits: logits - 100)
  results = [
    predict.segment(load, request, tmp_path / name, progress=False)[0]
    for name, load in (('dense', Threshold), ('empty', empty))
  ]
  assert [result.labels[0]['present'] for result in results] == [True, False]


def test_one_scan_and_one_prompt_need_no_list(tmp_path):
  path = save_scan(tmp_path / 'a.nii.gz')
  for number, scan in enumerate((path, str(path))):
    out = tmp_path / f'out{number}'
    [result] = predict.predict(Threshold(), scan, out, 'liver', progress=False)
    assert [row['name'] for row in result.labels] == ['liver']
  assert [target.name for target in make_targets('jaw bone')] == ['mandible']


def test_what_is_empty_is_refused(tmp_path):
  path = save_scan(tmp_path / 'a.nii.gz')
  with pytest.raises(UserError, match='prompts is empty; write what to look for'):
    predict.predict(Threshold(), [path], tmp_path / 'out', [])
  with pytest.raises(UserError, match='inputs is empty; give files or folders of scans'):
    predict.predict(Threshold(), [], tmp_path / 'out')


def test_a_prompt_in_another_encoding_is_refused():
  with pytest.raises(UserError, match='the prompt ".sophagus" is not UTF-8; write it in UTF-8'):
    make_targets(['\udcd6sophagus'])
