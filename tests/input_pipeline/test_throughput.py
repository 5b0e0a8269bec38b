import os
import re

import pytest

from input_pipeline import bricks, inspect, throughput
from input_pipeline.batches import dataset


def test_the_command_measures_prepared_sources(tiny_data, capsys):
  command = [f'--data-dir={tiny_data}', '--patch=16', '--batch-size=2', '--seconds=0.2']
  assert throughput.main([*command, '--cache-mb=0', '--parallel=2']) == 0
  title, _, header, _, *rows = capsys.readouterr().out.splitlines()
  assert re.fullmatch(r'phantom: augmented patches of 16\^3, 0 MB of cache, \d+ processors', title)
  assert 'patches/s' in header
  cold = [cells(row) for row in rows]
  assert [row[:2] for row in cold] == [['tf.data', '2'], ['grain', '2']]
  for *_, rate, amplification, memory in cold:
    assert float(rate) > 0
    # Bricks have the size of the patches, which touch 8 of them, or more where they are turned, and
    # fewer where there is air; without a cache the voxel to place them at costs one more.
    assert 2 < float(amplification) < 20
    assert 0.1 < float(memory) < 100
  options = ['--plain', '--source=phantom', '--loader=grain', '--parallel=1']
  assert throughput.main([*command, *options]) == 0
  title, *_, row = capsys.readouterr().out.splitlines()
  assert 'plain patches' in title
  loader, workers, _, amplification, _ = cells(row)
  assert (loader, workers) == ('grain', '1')
  assert float(amplification) < float(cold[0][3])


def cells(row):
  return [cell.strip() for cell in row.strip('|').split('|')]


@pytest.mark.parametrize('arguments', [[], ['--source=lits']])
def test_what_is_not_prepared_is_named(arguments, tmp_path, capsys):
  assert throughput.main([f'--data-dir={tmp_path}', *arguments]) == 1
  assert 'prepared' in capsys.readouterr().err
  assert bricks.prepared_sources(tmp_path) == []


def test_without_a_loader_no_table_is_printed(tiny_data, capsys, monkeypatch):
  monkeypatch.setattr(dataset, 'installed_loaders', list)
  assert throughput.main([f'--data-dir={tiny_data}']) == 1
  printed = capsys.readouterr()
  assert not printed.out and 'is installed; pip install tensorflow or grain' in printed.err


@pytest.mark.parametrize('command', [inspect, throughput])
def test_the_address_of_a_bucket_stays_as_it_is(command):
  arguments = command.make_parser().parse_args(['--data-dir=gs://bucket/data'])
  assert os.fspath(arguments.data_dir / 'inspect') == 'gs://bucket/data/inspect'
