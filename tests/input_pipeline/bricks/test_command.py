"""The command to prepare a source again, as it is typed."""

import pytest

from input_pipeline import bricks
from input_pipeline.bricks.command import prepare_command, suited_to
from input_pipeline.cli import called_as

SETTINGS = {'source': 'nifti_folder', 'spacing': [4.0, 4.0, 3.0], 'brick': 32, 'limit': None}


def test_with_all_that_it_was_prepared_by():
  report = {
    'settings': SETTINGS | {'limit': 3},
    'manual_dir': '/scans/of mine',
    'groups': 'digest',
    'groups_file': '/scans/groups.json',
  }
  assert prepare_command('runs/data', 'mine', report, '--folds') == (
    "python -m input_pipeline.prepare --source=nifti_folder --manual_dir='/scans/of mine' "
    '--name=mine --data_dir=runs/data --spacing=4,4,3 --brick=32 --cases=3 '
    '--groups=/scans/groups.json --folds'
  )
  both_ways = report | {'assigned': []}  # prepared with --folds: nobody need ask for them again
  for options in ((), ('--folds',)):
    command = prepare_command('runs/data', 'mine', both_ways, *options)
    assert command.endswith('--groups=/scans/groups.json --folds') and command.count('--folds') == 1


def test_a_source_of_an_earlier_version_says_that_its_folder_is_missing():
  command = prepare_command('data', 'openkbp', {'settings': SETTINGS | {'source': 'openkbp'}})
  assert '--source=openkbp --manual_dir=DOWNLOADED --data_dir=data ' in command
  command = prepare_command('data', 'phantom', {'settings': SETTINGS | {'source': 'phantom'}})
  assert '--source=phantom --data_dir=data ' in command


def test_what_is_not_prepared_has_no_settings():
  with called_as('mome train', {'python -m input_pipeline.prepare': 'mome prepare'}):
    command = prepare_command('data', 'openkbp', None)
  assert command == 'mome prepare --source=openkbp --manual_dir=DOWNLOADED --data_dir=data'
  command = prepare_command('data', 'mine', None)  # no source is called so
  assert command.endswith('--source=SOURCE --manual_dir=DOWNLOADED --name=mine --data_dir=data')


@pytest.mark.parametrize(('patch', 'edge'), [((40, 40, 40), 32), ((96, 96, 64), 64)])
def test_what_a_run_lacks_is_told_as_its_patches_need_it(patch, edge, tmp_path):
  told = f'--spacing=4,4,3 --brick={edge}, or correct data_dir'
  with pytest.raises(bricks.NotPreparedError, match=told):
    bricks.read_template(tmp_path, ['openkbp'], options=suited_to((4.0, 4.0, 3.0), patch))
