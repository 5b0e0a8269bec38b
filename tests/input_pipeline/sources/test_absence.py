"""Which cases hold which classes, as people read it."""

import pytest

from input_pipeline.sources import SourceError, absence


def test_classes_by_case(capsys):
  occurs = {name: frozenset({'liver'}) for name in 'abcd'} | {
    'e': frozenset({'liver', 'mandible'}),
    'f': frozenset({'mandible', 'larynx'}),
  }
  table = absence.partial(occurs, ['liver', 'mandible', 'larynx', 'spleen'])
  assert absence.by_case(table).splitlines() == [
    '| label maps | liver | mandible | larynx |',
    '| -- | -- | -- | -- |',
    '| a, b, c and 1 more | x |  |  |',
    '| e | x | x |  |',
    '| f |  | x | x |',
  ]
  with pytest.raises(SourceError, match="'mandible' is in 2 of 6 label maps"):
    absence.ask('dataset.json', table)
  assert '| f |  | x | x |' in capsys.readouterr().err


def test_nothing_is_asked_where_every_case_holds_all(capsys):
  occurs = {name: frozenset({'liver'}) for name in 'ab'}
  absence.ask('dataset.json', absence.partial(occurs, ['liver', 'spleen']))
  assert capsys.readouterr() == ('', '')
