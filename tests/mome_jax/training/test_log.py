"""The log of a run that goes on keeps all that it can read."""

import json

import numpy as np
from etils import epath

from mome_jax.training.log import MetricsLog


def write(workdir, *lines):
  (workdir / 'metrics.jsonl').write_bytes(b'\n'.join(lines))


def row(step):
  return json.dumps({'step': step, 'loss': 1.0}).encode()


def test_a_log_that_goes_on_ends_where_the_checkpoint_is(tmp_path, capsys):
  write(tmp_path, row(10), row(20), row(30), b'{"step": 40, "lo')
  log = MetricsLog(epath.Path(tmp_path), start=20)
  log.write(30, {'loss': np.float32(0.5)}, vectors=False)
  assert [line['step'] for line in log.rows()] == [10, 20, 30]
  assert 'metrics.jsonl' not in capsys.readouterr().err


def test_what_was_measured_later_joins_the_line_of_its_step(tmp_path):
  workdir = epath.Path(tmp_path)
  write(tmp_path, row(10), row(20), b'')
  for dice in (0.25, 0.5):  # the run was ended again before its next checkpoint
    MetricsLog(workdir, start=20).write(20, {'validation/dice': np.float64(dice)}, vectors=False)
  lines = MetricsLog(workdir, start=20).rows()
  assert lines == [{'step': 10, 'loss': 1.0}, {'step': 20, 'loss': 1.0, 'validation/dice': 0.5}]


def test_a_damaged_line_costs_no_other(tmp_path, capsys):
  write(tmp_path, row(10), b'{"step": 2\xff', b'[20]', row(30), b'')
  assert [line['step'] for line in MetricsLog(epath.Path(tmp_path), start=30).rows()] == [10, 30]
  told = capsys.readouterr().err
  assert f'{tmp_path}/metrics.jsonl: line 2 cannot be read and is left out' in told
  assert 'line 3' in told
