"""Text files as Windows programs write them."""

import json

import pytest
from etils import epath

from input_pipeline.errors import UserError
from input_pipeline.files import text_files


@pytest.mark.parametrize(
  'encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-32'], ids=lambda name: name
)
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'], ids=['lf', 'crlf', 'cr'])
def test_the_same_text_whatever_the_encoding_and_line_ends(encoding, end, tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes(end.join(['Kopf-Übersicht', '{"ä": 1}', '']).encode(encoding))
  assert text_files.read_text(path) == 'Kopf-Übersicht\n{"ä": 1}\n'


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
def test_json_and_csv(encoding, tmp_path):
  path = tmp_path / 'a'
  path.write_bytes(json.dumps({'labels': {'liver': 1}}, indent=1).encode(encoding))
  assert text_files.read_json(path) == {'labels': {'liver': 1}}
  for separator in ',;\t':
    path.write_bytes(separator.join('ab').encode(encoding) + f'\r\n1{separator}"x\r\ny"'.encode(
      encoding.replace('utf-8-sig', 'utf-8').replace('utf-16', 'utf-16-le')
    ))  # fmt: skip
    assert text_files.read_csv(path) == (['a', 'b'], [{'a': '1', 'b': 'x\ny'}])
  path.write_text('')
  assert text_files.read_csv(path) == ([], [])


def test_what_is_no_text_is_named(tmp_path):
  path = tmp_path / 'a.json'
  path.write_bytes('{"Lungenflügel": 1}'.encode('cp1252'))
  with pytest.raises(text_files.TextFileError, match=r'a\.json: byte 10 is not utf-8; save it as'):
    text_files.read_json(path)
  path.write_text('{"a": 1,}')
  with pytest.raises(text_files.TextFileError, match=r'a\.json: not JSON .*line 1.*; correct it'):
    text_files.read_json(path)


def test_every_failure_is_the_error_asked_for(tmp_path):
  class ModelError(UserError):
    pass

  path = tmp_path / 'a.json'
  path.write_bytes('\ufeff{"ä": 1}\r\n'.encode())
  assert text_files.read_explained(path, ModelError) == '{"ä": 1}\n'
  path.write_bytes(b'\xe4')
  with pytest.raises(ModelError, match=r'a\.json: byte 0 is not utf-8; save it as UTF-8'):
    text_files.read_explained(path, ModelError)
  with pytest.raises(ModelError, match='not one: cannot be read .*No such file'):
    text_files.read_explained(tmp_path / 'not one', ModelError)


def test_a_file_is_replaced_whole_or_not(tmp_path, monkeypatch):
  path = tmp_path / 'a.json'
  text_files.replace(path, 'old')
  text_files.replace(path, b'new')
  assert path.read_text() == 'new'

  def refuse(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(type(epath.Path(path)), 'replace', refuse)
  with pytest.raises(OSError, match='No space'):
    text_files.replace(path, 'newer')
  assert path.read_text() == 'new' and [file.name for file in tmp_path.iterdir()] == ['a.json']


def test_a_place_that_cannot_be_written_is_known_before(tmp_path):
  text_files.check_replaceable(tmp_path / 'a.json')
  assert not list(tmp_path.iterdir())
  for place in (tmp_path, tmp_path / 'nowhere' / 'a.json'):
    with pytest.raises(OSError):
      text_files.check_replaceable(place)
