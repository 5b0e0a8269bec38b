import re

import pytest

from input_pipeline import bricks, throughput


def test_the_command_measures_prepared_sources(tiny_data, capsys):
  command = [f'--data-dir={tiny_data}', '--patch=16', '--batch-size=2', '--seconds=0.2']
  assert throughput.main([*command, '--cache-mb=0']) == 0
  cold = capsys.readouterr().out
  printed = re.fullmatch(
    r'phantom: ([\d.]+) augmented patches of 16\^3 a second, ([\d.]+) voxels read for each one '
    r'used, ([\d.]+) GB of memory\n',
    cold,
  )
  rate, amplification, memory = map(float, printed.groups())
  assert rate > 0
  # Bricks have the size of the patches, which touch 8 of them, or more where they are turned, and
  # fewer where there is air; without a cache the voxel to place them at costs one more.
  assert 2 < amplification < 20
  assert 0.1 < memory < 100
  assert throughput.main([*command, '--plain', '--source=phantom']) == 0
  warm = capsys.readouterr().out
  assert 'plain patches' in warm
  assert float(re.search(r'([\d.]+) voxels read', warm)[1]) < amplification


@pytest.mark.parametrize('arguments', [[], ['--source=lits']])
def test_what_is_not_prepared_is_named(arguments, tmp_path, capsys):
  assert throughput.main([f'--data-dir={tmp_path}', *arguments]) == 1
  assert 'prepared' in capsys.readouterr().err
  assert bricks.prepared_sources(tmp_path) == []
