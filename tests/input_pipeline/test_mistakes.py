"""Mistakes on the command lines of `input_pipeline`: one line each, with what to do."""

import json
import pathlib
import re

import pytest
from mistakes import told

from input_pipeline import (
  bricks,
  cli,
  dedupe,
  inspect,
  openkbp_download,
  prepare,
  throughput,
)

MISTAKES = [
  (prepare, '', 2, 'needs --source and --data-dir'),
  (prepare, '--source=fantom --data_dir=d', 1, 'did you mean phantom?'),
  (prepare, '--sorce=phantom --data_dir=d', 2, 'did you mean --source?'),
  (prepare, '--source=lits --data_dir=d', 1, 'lits: pass --manual_dir'),
  (prepare, '--source=lits --data_dir=d --manual_dir=nowhere', 1, 'nowhere: no such folder'),
  (
    prepare,
    '--source=amos22 --data_dir=d --manual_dir=empty',
    1,
    'like imagesTr/amos_0###.nii.gz and labelsTr/amos_0###.nii.gz in it or below (#: digits)',
  ),
  (prepare, '--source=lits --check --manual_dir=gs://b/x', 1, 'gs://b/x is in a bucket; give a'),
  (prepare, '--source=openkbp --check --manual_dir=gs://b/x', 1, 'gs://b/x is in a bucket; give'),
  (dedupe, '--download=lits=gs://b/x --output=o.json', 1, 'gs://b/x is in a bucket; give a place'),
  (prepare, '--source=phantom --data_dir=file --cases=1', 1, 'file: is a file, no folder'),
  (prepare, '--source=phantom --data_dir=d --spacing=x', 2, "'x': expected X,Y,Z"),
  (prepare, '--source=phantom --data_dir=d --brick=0', 2, "'0': expected a whole number from 1"),
  (prepare, '--source=phantom --data_dir=d --cases=few', 2, "'few': expected a whole number"),
  (prepare, '--source=phantom --data_dir=d --groups=nowhere', 1, 'nowhere: cannot be read'),
  (prepare, '--source=phantom --data_dir=d --groups=broken.json', 1, 'broken.json: not JSON'),
  (prepare, '--source=phantom --data_dir=d --groups=list.json', 1, 'not a file of mome dedupe'),
  (prepare, '--source=nifti_folder --data_dir=d --manual_dir=empty', 1, 'dataset.json: no such'),
  (dedupe, '--download=lits=nowhere --output=o.json', 1, 'nowhere: no such folder'),
  (dedupe, '--download=litz=empty --output=o.json', 2, 'did you mean lits?'),
  (dedupe, '--download=lits --output=o.json', 2, 'expected SOURCE=FOLDER'),
  (inspect, '--data-dir=nowhere', 1, 'holds no prepared source'),
  (inspect, '--data-dir=data --source=fantom', 1, 'did you mean phantom?'),
  (inspect, '--data-dir=data --source=cut', 1, 'prepare.json: cannot be read'),
  (throughput, '--data-dir=nowhere', 1, 'holds no prepared source'),
  (throughput, '--data-dir=data --source=phantom', 1, 'without'),
  (throughput, '--data-dir=data --patch=0', 2, "'0': expected a whole number from 1"),
  (throughput, '--data-dir=data --seconds=-1', 2, "'-1': expected a number above 0"),
  (openkbp_download, '--output=o --original=empty', 1, 'no train-pats/pt_N in it'),
  (openkbp_download, '--original=empty', 2, 'required: --output'),
]


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  folder = tmp_path_factory.mktemp('mistakes')
  (folder / 'file').write_text('x')
  (folder / 'broken.json').write_text('{')
  (folder / 'list.json').write_text('{}')
  (folder / 'empty').mkdir()
  settings = json.dumps({'settings': {'version': bricks.VERSION}})
  for source, text in (('phantom', settings), ('cut', settings[:10])):
    (folder / 'data' / source).mkdir(parents=True)
    (folder / 'data' / source / bricks.SETTINGS).write_text(text)
  return folder


@pytest.mark.parametrize(('command', 'line', 'code', 'message'), MISTAKES)
def test_explained_in_one_line(place, monkeypatch, capsys, command, line, code, message):
  monkeypatch.chdir(place)
  answer = told(command.main, line.split(), capsys)
  assert answer[0] == code
  assert message in answer[1]


def test_what_begins_with_a_dash_and_is_no_option():
  parser = cli.Parser()
  parser.add_argument('--beam', nargs='?', const='')
  parser.add_argument('files', nargs='*')
  flags = '--runner=DirectRunner --direct_num_workers=2'
  for words in (['--beam', flags], [f'--beam={flags}']):
    assert parser.parse_args(words).beam == flags
  assert parser.parse_args(['--', '-ct', '--odd']).files == ['-ct', '--odd']


def test_an_empty_value_is_no_folder(capsys):
  """As of `--output=$UNSET`: it would be the folder one is in."""
  parser = cli.Parser(prog='it')
  parser.add_argument('--output')
  parser.add_argument('--folder', type=pathlib.Path)
  parser.add_argument('--licence', default='')
  parser.add_argument('--beam', nargs='?', const='')
  parser.add_argument('models', nargs='*', metavar='MODEL')
  for words, called in (
    (['--output='], '--output'),
    (['--output', ''], '--output'),
    (['--folder='], '--folder'),
    (['a', ''], 'MODEL'),
  ):
    with pytest.raises(SystemExit) as end:
      parser.parse_args(words)
    assert end.value.code == 2
    assert re.search(f'{called}:? is empty; give it a value', capsys.readouterr().err)
  parsed = parser.parse_args(['--licence=', '--beam'])
  assert (parsed.licence, parsed.beam, parsed.output) == ('', '', None)


def test_help_comes_before_what_is_unknown(capsys):
  with pytest.raises(SystemExit) as end:
    prepare.main(['-i', 'x', '--help'])
  assert end.value.code == 0


def test_help_is_no_mistake(capsys):
  for command in (prepare, dedupe, inspect, throughput, openkbp_download):
    with pytest.raises(SystemExit) as end:
      command.main(['--help'])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f'usage: python -m {command.__name__} ')
