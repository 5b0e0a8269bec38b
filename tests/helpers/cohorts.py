"""Cohorts without scans, for tests of the rules."""

import numpy as np

from input_pipeline.anatomy import TEMPLATE
from mome_jax.plan.cohort import CaseFacts, Cohort, Origin

BINS = 1024  # of 4 HU, from -1024 on


def histogram(low, high):
  """Evenly spread HU, as of `CaseFacts.inside`."""
  values = np.zeros(BINS)
  values[(low + 1024) // 4 : (high + 1024) // 4] = 1
  return values / values.sum()


def case(spacing, shape, volumes=None, *, hu=(0, 100), source='a', pieces=1.0):
  """A scan whose classes all have the same HU."""
  volumes = {'liver': 1500.0} if volumes is None else volumes
  return CaseFacts(
    source=source,
    name='case',
    supervised=tuple(volumes),
    spacing=tuple(spacing),
    shape=tuple(shape),
    volumes=volumes,
    pieces=dict.fromkeys(volumes, pieces),
    inside={name: histogram(*hu) for name in volumes},
    outside=histogram(-900, 1000),
  )


def cohort(cases, **changes):
  """A cohort of which every scan was read."""
  names = sorted({name for one in cases for name in one.volumes})
  families = {}
  for one in cases:
    families[one.source] = max(families.get(one.source, 0), len(one.supervised))
  fields = {
    'origins': [Origin('mine', 'nifti_folder', 'FOLDER')],
    'template': TEMPLATE,
    'cases': cases,
    'labelled': {name: sum(name in one.supervised for one in cases) for name in names},
    'families': families,
    'total': len(cases),
    'skipped': [],
  }
  return Cohort(**(fields | changes))
