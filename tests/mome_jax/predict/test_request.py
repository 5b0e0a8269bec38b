"""What is asked for: from the keywords of the public call to one object."""

import dataclasses
import inspect

from threshold import Threshold, save_scan

from mome_jax import predict
from mome_jax.predict import segment_scans
from mome_jax.predict.request import Options, Request


def test_every_keyword_of_the_call_reaches_its_field(monkeypatch, tmp_path):
  requests = []
  monkeypatch.setattr(segment_scans, 'segment', lambda load, request, *_, **__:
                      requests.append(request))  # fmt: skip
  names = [field.name for field in dataclasses.fields(Request)]
  predict.predict('model', output=tmp_path, **{name: f'a {name}' for name in names})
  assert dataclasses.asdict(requests[0]) == {name: f'a {name}' for name in names}


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
