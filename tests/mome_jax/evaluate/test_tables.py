"""Tables in Markdown and CSV, and published numbers beside ours."""

import csv
import io
import math

import pytest

from input_pipeline import sources
from input_pipeline.anatomy import TEMPLATE
from mome_jax.evaluate import metrics, tables

NAN = math.nan


def row(case, name, dice, nsd, hd95, **more):
  values = {'dice': dice, 'nsd_1mm': nsd / 2, 'nsd': nsd, 'nsd_3mm': nsd, 'hd95_mm': hd95}
  return {'case': case, 'class': name, **values, **more}


def test_scores():
  rows = [row('a', 'liver', 0.9, 0.8, 4.0), row('a', 'colon', NAN, NAN, NAN)]
  rows.append(row('a', 'rectum', 0.0, 0.0, math.inf))
  text = tables.report(metrics.summarize(rows), title='Phantoms')
  lines = text.splitlines()
  assert lines[0] == '### Phantoms'
  assert lines[2] == '| class | n | Dice % | NSD 2 mm % | HD95 mm |'
  assert lines[4] == '| liver | 1 | 90.0 | 80.0 | 4.0 |'  # one case has no interval
  assert lines[5] == '| colon | 0 | – | – | – |'
  assert lines[6] == '| rectum | 1 | 0.0 | 0.0 | – (1 infinite) |'
  mean = '| **45.0** | **40.0** | |'
  assert lines[7:] == [f'| **mean over classes** | {mean}']
  assert len({line.count('|') for line in lines[2:]}) == 1
  assert '**–**' in tables.report(metrics.summarize([]), title='Nothing')


def test_classes_of_few_patients_are_named_below_an_interval_that_they_narrow():
  def of(liver, spleen):
    counts = {'liver': liver, 'spleen': spleen}
    rows = [
      row(str(i), name, 0.5 + i / 20, 0.5, 4.0) for name, n in counts.items() for i in range(n)
    ]
    return tables.report(metrics.summarize(rows), title='').splitlines()[-1]

  few = '**The interval of the mean over classes is too narrow**: few patients show spleen '
  assert of(5, 1) == few + '(1). A class of one patient counts there as if it were certain.'
  assert of(5, 4) == few + '(4).'
  assert of(5, 5).startswith('| **mean over classes** |')
  assert of(1, 1) == '| **mean over classes** | | **50.0** | **50.0** | |'  # no interval


def test_a_name_with_a_bar_is_one_cell():
  text = tables.report(metrics.summarize([row('a', 'gtv|ctv', 0.9, 0.8, 4.0)]), title='')
  assert r'| gtv\|ctv | 1 | 90.0 | 80.0 | 4.0 |' in text.splitlines()


LESION = {'lesions': 2, 'found': 1, 'predicted': 3}
TWO = [
  row('a', 'spleen', 0.9, 0.8, 4.0, source='msd_spleen'),
  row('a', 'spleen', 0.5, 0.4, 4.0, source='mine'),  # the same name in another dataset
  row('b', 'liver tumor', 0.3, 0.2, 4.0, source='mine', **LESION),
]


def test_detection_and_datasets():
  text = tables.report(metrics.summarize(TWO), title='Two')
  assert '### Detection' in text and '| liver tumor | 1 | 0 | 100.0 | – |' in text
  assert '| class | msd_spleen | mine |' in text
  assert '| spleen | 90.0 | 50.0 |' in text
  assert '| liver tumor | – | 30.0 |' in text
  assert '| **mean over classes** | 90.0 | 40.0 |' in text


def test_published_numbers_only_where_dataset_and_classes_match():
  text = tables.report(metrics.summarize(TWO), title='Two')
  shown = text[text.index('### Published') :].splitlines()
  rows = [line for line in shown if line.startswith('| msd_spleen')]
  assert len(rows) == 3 and '| spleen | 90.0 | nnU-Net | 96.7 |' in rows[0]
  assert all('https://' in line for line in rows)
  assert not [line for line in shown if line.startswith(('| mine', '| lits', '| btcv'))]
  # The published mean of LiTS is over liver and tumor: the liver alone is no match.
  alone = [row('a', 'liver', 0.9, 0.8, 4.0, source='lits')]
  assert 'Published' not in tables.report(metrics.summarize(alone), title='')
  both = [*alone, row('a', 'liver tumor', 0.5, 0.8, 4.0, source='lits')]
  assert '| lits | mean of 2 | 70.0 | nnU-Net | 80.09 |' in tables.report(
    metrics.summarize(both), title=''
  )


def test_published_numbers_are_complete():
  for entry in tables.read_published():
    assert set(entry) == {'dataset', 'classes', 'model', 'dice', 'test', 'source'}
    assert entry['dataset'] in sources.SOURCES
    assert entry['classes'] and set(entry['classes']) <= set(TEMPLATE.names())
    assert 0 < entry['dice'] < 100 and entry['source'].startswith('https://')


def test_csv():
  lines = list(csv.DictReader(io.StringIO(tables.to_csv(metrics.summarize(TWO)))))
  by_key = {(line['dataset'], line['class']): line for line in lines}
  assert set(by_key) == {
    *((d, c) for d in ('all', 'mine') for c in ('spleen', 'liver tumor', 'mean over classes')),
    *(('msd_spleen', c) for c in ('spleen', 'mean over classes')),
  }
  assert float(by_key['all', 'spleen']['dice']) == pytest.approx(0.7)
  assert float(by_key['all', 'spleen']['dice_low']) == 0.5
  assert float(by_key['mine', 'mean over classes']['dice']) == pytest.approx(0.4)
  tumor = by_key['mine', 'liver tumor']
  assert (tumor['n_diseased'], tumor['sensitivity'], tumor['specificity']) == ('1', '1.0', '')
