"""Classes that no training scan teaches."""

import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest

from input_pipeline import bricks
from input_pipeline.anatomy import TEMPLATE
from input_pipeline.ct import volume
from mome_jax.errors import ConfigError
from mome_jax.training.unlearnable import check, outdated, unlearnable

CLASSES = ('liver', 'spleen', 'pancreas', 'aorta')


def record(name, supervised, shown):
  """A scan with a block of some classes."""
  codes = np.zeros((16, 16, 16), np.uint8)
  for n, of in enumerate(shown):
    codes[2 * n + 2, 4:8, 4:8] = TEMPLATE.get(of).index
  scan = volume.to_canonical(np.zeros(codes.shape, np.int16), nib.affines.from_matvec(np.eye(3)))
  return bricks.VolumeRecord(name, 's', 'train', supervised, {}, scan.array, codes, scan.geometry)


def store(*records):
  return bricks.MemoryStore('s', records, spacing=(1, 1, 1), brick=16, template=TEMPLATE)


def test_classes_that_no_training_scan_labels_or_shows_are_told():
  # The second scan shows a pancreas that nobody says it labels.
  scans = [record('a', ('liver', 'spleen'), ['liver']),
           record('b', ('liver',), ['liver', 'pancreas'])]  # fmt: skip
  unlabelled, empty = unlearnable([store(scans[0]), store(scans[1])], CLASSES)
  assert 'no training scan labels pancreas, aorta:' in unlabelled
  assert 'no training scan shows spleen:' in empty
  everything = record('c', CLASSES, CLASSES)
  assert unlearnable([store(*scans, everything)], CLASSES) == []


def test_a_run_that_could_learn_nothing_is_refused():
  absent = dataclasses.replace(record('a', ('liver', 'spleen'), []), absent=('liver', 'spleen'))
  empty = record('b', ('aorta',), ['pancreas'])  # nobody says that it labels it
  with pytest.raises(ConfigError, match=r'shows liver or spleen \(nor any other class\)'):
    check([store(absent), store(empty)], ('liver', 'spleen'))
  shows = record('c', ('aorta', 'spleen'), ['aorta'])
  with pytest.raises(ConfigError, match=r'shows liver or spleen \(they show aorta\), .*; add a so'):
    check([store(absent), store(shows)], ('liver', 'spleen'))
  check([store(absent), store(shows)], CLASSES)  # of liver and spleen a caution is enough


def test_sources_that_were_prepared_before_they_declared_absence_are_told(tmp_path):
  (tmp_path / 'openkbp').mkdir()
  settings = {'source': 'openkbp', 'spacing': [4, 4, 3], 'brick': 32}
  report = {'settings': settings, 'manual_dir': '/downloads/openkbp'}
  (tmp_path / 'openkbp' / bricks.SETTINGS).write_text(json.dumps(report))

  def prepared(**fields):
    scan = dataclasses.replace(record('a', ('brainstem', *fields.get('absent', ())), []), **fields)
    return bricks.MemoryStore('openkbp', [scan], spacing=(4, 4, 3), brick=32, template=TEMPLATE)

  (line,) = outdated([prepared()], ('brainstem', 'aorta', 'liver', 'spleen'), tmp_path)
  assert 'cannot show liver, spleen: this run does not learn that' in line
  assert '--source=openkbp --manual_dir=/downloads/openkbp' in line
  # Seven organs of the head and neck ask for nothing, nor does a source that is up to date.
  assert outdated([prepared()], ('brainstem', 'aorta'), tmp_path) == []
  assert outdated([prepared(absent=('liver', 'spleen'))], ('liver', 'spleen'), tmp_path) == []
  assert outdated([store(record('a', (), []))], CLASSES, tmp_path) == []


def test_sources_that_were_prepared_before_air_was_told_are_told(tmp_path, monkeypatch):
  scans = store(record('a', ('liver',), ['liver']), record('b', ('liver', 'spleen'), ['spleen']))
  assert outdated([scans], CLASSES, tmp_path) == []
  monkeypatch.setattr(bricks.MemoryStore, 'tells_outside', False)
  (line,) = outdated([scans], ('liver', 'spleen'), tmp_path)
  assert 's was prepared before the air around patients was told: that spleen cannot be' in line
  assert outdated([scans], ('liver',), tmp_path) == []  # its labels tell it everywhere
