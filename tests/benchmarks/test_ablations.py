"""What the ablations take for done."""

import json
import os
import types

import pytest

from input_pipeline import bricks
from mome_jax import checkpoint
from mome_jax.evaluate import score_files
from mome_jax.text.vectors import TextVectors
from tests.benchmarks import ablations


@pytest.fixture
def place(tmp_path):
  """Settings of a variant and the workdir where it was trained and scored."""
  settings = dict(ablations.VARIANTS['sparse_8'][1])
  settings |= {'train.steps': 7, 'data_dir': tmp_path / 'data', 'evaluation.pictures': 0}
  workdir = tmp_path / 'run'
  prepared = tmp_path / 'data' / 'openkbp'
  prepared.mkdir(parents=True)
  (prepared / bricks.SETTINGS).write_text('{}')
  config = ablations.with_settings(settings)
  config.new_classes, config.text.d_model = ({'name': 'x'},), 77  # as training does
  checkpoint.save_description(workdir, config)
  (workdir / 'evaluation').mkdir()
  return settings, workdir, prepared / bricks.SETTINGS


def test_a_scored_run_of_this_config_on_these_data_is_done(place):
  settings, workdir, prepared = place
  config = ablations.with_settings(settings)
  assert config.model.bank.scales == (1, 2)
  assert not ablations.is_done(config, workdir)  # trained, not scored
  summary = workdir / 'evaluation' / score_files.SUMMARY
  summary.write_text('{}')
  assert ablations.is_done(config, workdir)
  with pytest.raises(SystemExit, match='other train.steps; remove it'):
    ablations.is_done(ablations.with_settings(settings | {'train.steps': 8}), workdir)
  with pytest.raises(SystemExit, match=r'other model\.top_k'):
    ablations.is_done(ablations.with_settings(settings | {'model.top_k': 2}), workdir)
  later = summary.stat().st_mtime + 10
  os.utime(prepared, (later, later))
  with pytest.raises(SystemExit, match='earlier data of openkbp'):
    ablations.is_done(config, workdir)


def test_every_variant_is_a_config(tmp_path):
  for name, (_, settings) in ablations.VARIANTS.items():
    config = ablations.with_settings({**settings, 'data_dir': tmp_path})
    assert isinstance(config.data_dir, str), name
  ablations.write_one_hot(tmp_path / 'one_hot.npz', ('liver', 'spleen'))
  assert TextVectors.load(tmp_path / 'one_hot.npz').width == 2


def test_what_is_prepared_otherwise_is_refused_without_the_download(tmp_path, monkeypatch):
  commands = []
  monkeypatch.setattr(ablations.subprocess, 'run', lambda command, **_: commands.append(command))
  args = types.SimpleNamespace(data_dir=tmp_path, manual_dir=None)
  (tmp_path / 'few').mkdir()
  settings = {'source': 'openkbp', 'version': bricks.VERSION, 'spacing': [4.0, 4.0, 3.0],
              'brick': 32, 'limit': 5}  # fmt: skip
  (tmp_path / 'few' / bricks.SETTINGS).write_text(json.dumps({'settings': settings}))
  ablations.prepare(args, 'openkbp', name='few', cases=5)
  assert not commands
  with pytest.raises(SystemExit, match='prepared otherwise'):
    ablations.prepare(args, 'openkbp', name='few', cases=6)
  args.manual_dir = 'download'
  ablations.prepare(args, 'openkbp', name='few', cases=5)
  assert '--manual_dir=download' in commands[0] and '--cases=5' in commands[0]
