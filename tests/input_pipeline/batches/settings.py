"""What the tests of batches share: classes, and the fields of `config.data`."""

import ml_collections

from input_pipeline.batches import augment

CLASSES = ('liver', 'liver tumor', 'left kidney', 'right kidney', 'kidney cyst', 'left lung')
PATCH = (20, 12, 24)
OFF = {'enabled': False}
ON = {name: 1.0 for name in augment.DEFAULTS if name.startswith('p_')} | {'p_mirror': 0.0}


def make_config(**changes):
  fields = {
    'patch': PATCH,
    'windows': ((-175.0, 250.0), (-1000.0, 1000.0)),
    'foreground': 0.67,
    'balance': 'sources',
    'cache_mb': 64,
    'num_parallel': 2,
    'augment': ON,
    'spacing': (8.0, 9.0, 7.0),
  }
  return ml_collections.ConfigDict({**fields, **changes})
