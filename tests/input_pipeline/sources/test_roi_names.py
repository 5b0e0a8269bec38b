"""Which entry of the table an ROI belongs to where several fit."""

import pytest

from input_pipeline.anatomy import TEMPLATE
from input_pipeline.sources import roi_names


@pytest.mark.parametrize(
  ('pattern', 'ignored', 'noun'),
  [
    ('parotid lt prv', 'PAROTID_LT_PRV', 'left parotid'),
    ('parotid lt prv', 'parotid*', 'left parotid'),
    ('parotid lt*', 'PAROTID LT PRV', None),
    ('parotid lt*', '*prv', 'left parotid'),
    ('other', '*prv', None),
    ('other', 'other', None),  # no class is called so
  ],
)
def test_names_without_wildcards_go_first_then_classes(pattern, ignored, noun):
  names = roi_names.make({'left parotid': pattern}, [ignored], TEMPLATE)
  assert names.class_of('Parotid LT PRV') == noun


def test_what_is_ignored_is_not_looked_up():
  names = roi_names.make({}, ['Parotid_L'], TEMPLATE)
  assert names.class_of('PAROTID L') is None
  assert names.class_of('PAROTID R') == 'right parotid'
