"""What is asked for: from the keywords of the public call to one object."""

import dataclasses
import inspect

import pytest
from threshold import Threshold, save_scan

from mome_jax import predict
from mome_jax.errors import UserError
from mome_jax.predict import segment_scans
from mome_jax.predict.request import Options, Request, make_targets


def test_every_keyword_of_the_call_reaches_its_field(monkeypatch, tmp_path):
  requests = []
  monkeypatch.setattr(segment_scans, 'segment', lambda load, request, *_, **__:
                      requests.append(request))  # fmt: skip
  names = [field.name for field in dataclasses.fields(Request)]
  predict.predict('model', output=tmp_path, **{name: f'a {name}' for name in names})
  several = ('inputs', 'prompts', 'rules')  # a text counts as one item
  given = {name: (f'a {name}',) if name in several else f'a {name}' for name in names}
  assert dataclasses.asdict(requests[0]) == given


def test_the_call_and_the_request_have_the_same_defaults():
  parameters = inspect.signature(predict.predict).parameters
  for field in dataclasses.fields(Request)[1:]:
    assert parameters[field.name].default == field.default, field.name


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
