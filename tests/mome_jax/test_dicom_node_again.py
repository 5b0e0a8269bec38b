"""What the DICOM node sends again, and when."""

import dataclasses
import shutil

from mome_jax.dicom_node.settings import Destination
from tests.mome_jax.test_dicom_node import archive, end, running, series, until, waiting

__all__ = ['series']  # a fixture


def test_results_to_be_sent_again_and_series_that_wait_take_turns(series, tmp_path):
  """To find that a destination is away may take a minute, of each of its results."""
  with archive() as (port, _):
    pass  # a port that nobody listens on any more
  node, lines, name = waiting(tmp_path, series, port)
  assert node.step() and node.step() and 'does not answer' in lines[-1]
  node._retries[name] = 1, 0.0  # its pause is over
  for new in ('1.2.4', '1.2.5'):
    shutil.copytree(series[0].parent, node.incoming / new)
    node._receiver._last[new] = 0.0
  for told in ('1.2.4: segmented', '1.2.4: ARCHIVE', f'{name}: ARCHIVE', '1.2.5: segmented'):
    assert node.step() and lines[-1].startswith(told)
  end(node)


def test_results_that_were_given_up_can_be_sent_again(series, tmp_path):
  with archive() as (port, taken):
    node, lines, name = waiting(tmp_path, series, 1, attempts=1)
    assert node.step() and node.step() and not node.step()
    assert 'failed: ARCHIVE at 127.0.0.1:1 does not answer' in lines[-1]
    node.settings = dataclasses.replace(
      node.settings, destinations=(Destination('ARCHIVE', '127.0.0.1', port),)
    )
    (node.failed / name / 'results').rename(node.outgoing / name)
    assert node.step() and not node.step()
    assert lines[-1] == f'{name}: 1 results sent to ARCHIVE' and len(taken) == 1
    end(node)


def test_results_that_wait_are_sent_beside_those_of_later_images(series, tmp_path):
  for _ in range(2):  # nobody listens on port 1
    node, _, name = waiting(tmp_path, series, keep=True)
    while list(node.incoming.iterdir()):
      node.step()
    end(node)
  outgoing = tmp_path / 'node' / 'outgoing'
  assert {path.name for path in outgoing.iterdir()} == {name, f'{name}-2'}
  with archive() as (port, taken), running(tmp_path, port, keep=True) as (_, lines):
    until(lambda: len(taken) == 2 and not list(outgoing.iterdir()))
  assert {f'{name}: 1 results sent to ARCHIVE', f'{name}-2: 1 results sent to ARCHIVE'} <= {*lines}
  assert len({dataset.SOPInstanceUID for dataset in taken}) == 2
  kept = {path.name for path in (tmp_path / 'node' / 'done' / name).iterdir()}
  assert kept == {'images', 'images-2', 'results'}
