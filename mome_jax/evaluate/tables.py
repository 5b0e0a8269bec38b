"""Tables of scores as papers print them, in Markdown and CSV; published numbers beside ours."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mome_jax import shipped
from mome_jax.evaluate import false_positives, metrics

_DETECTION = ('sensitivity', 'specificity', 'harmonic_mean', 'lesion_sensitivity',
              'false_positives_per_healthy')  # fmt: skip
_FEW = 5  # scans of a class, below which the interval of the mean is noted as too narrow


def report(summary: Mapping[str, Any], *, title: str) -> str:
  """All tables of an evaluation in Markdown.

  Args:
    summary: of `metrics.summarize`.
    title: of the first table.

  Returns:
    Scores by class; detection where there are tumours or cysts; volumes of masks in scans that do
    not hold the class, where there are such; Dice by dataset and class where
    there are several datasets; published numbers where they are of one of these datasets.
  """
  parts = [scores(summary, title=title), detection(summary), false_masks(summary)]
  parts.append(by_dataset(summary))
  return '\n'.join(part for part in (*parts, published(summary)) if part)


def scores(summary: Mapping[str, Any], *, title: str) -> str:
  """Dice, NSD, HD95 and further metrics by class, last row the mean over classes.

  Below it a note where that mean has an interval and some of its classes are of few patients.
  """
  more = {name: metric for name, metric in metrics.further().items() if metric.title}
  rows = []
  for name, row in summary['classes'].items():
    if not _scored(row):
      continue
    distance = '–' if row['hd95_mm'] is None else f'{row["hd95_mm"]:.1f}'
    if row['hd95_infinite']:
      distance += f' ({row["hd95_infinite"]} infinite)'
    dice = percent(row['dice'], row['dice_interval'])
    nsd = percent(row['nsd'], row['nsd_interval'])
    rows.append((name, row['n'], dice, nsd, distance, *_further(row, more)))
  dice = percent(summary['mean_dice'], summary['mean_dice_interval'])
  nsd = percent(summary['mean_nsd'], summary['mean_nsd_interval'])
  rows.append(('**mean over classes**', '', f'**{dice}**', f'**{nsd}**', *[''] * (1 + len(more))))
  titles = (metric.title for metric in more.values())
  text = markdown(title, ('class', 'n', 'Dice %', 'NSD 2 mm %', 'HD95 mm', *titles), rows)
  has_interval = summary['mean_dice_interval'][0] is not None
  patients = lambda row: row.get('n_patients', row['n'])  # of before: one a scan
  counts = {name: patients(row) for name, row in summary['classes'].items()}
  return text + (few_patients(counts) if has_interval else '')


def few_patients(counts: Mapping[str, int]) -> str:
  """What is wrong with the interval of a mean over classes; empty where no class has few patients.

  Resamples of few patients vary too little, and those of a single one not at all.

  Args:
    counts: class -> patients that are in its mean.
  """
  few = {name: n for name, n in counts.items() if 0 < n < _FEW}
  if not few:
    return ''
  text = '**The interval of the mean over classes is too narrow**: few patients show '
  text += ', '.join(f'{name} ({n})' for name, n in few.items())
  single = 1 in few.values()
  return f'\n{text}.{" A class of one patient counts there as if it were certain." * single}\n'


def _scored(row: Mapping[str, Any]) -> bool:
  """Whether a class can be in any of the scans: if not, there is nothing to overlap with."""
  return row['n'] + row['n_both_empty'] > 0


def false_masks(summary: Mapping[str, Any]) -> str:
  """Volumes of masks where the class is not; see `false_positives`. Empty where it always is."""
  rows = []
  for name, row in summary['classes'].items():
    if numbers := row.get('false_positives'):
      volumes = (millilitres(numbers[key]) for key in ('mean_ml', 'max_ml'))
      rows.append((name, numbers['n'], numbers['n_absent'], numbers['n_above'], *volumes))
  limit = f'scans with more than {false_positives.LIMIT_ML:g} ml'
  header = ('class', 'scans without it', 'out of view', limit, 'mean ml', 'largest ml')
  return markdown('Masks where the class is not', header, rows) if rows else ''


def millilitres(volume: float) -> str:
  """A volume with one decimal, or one digit where that would be 0.0 and it is not."""
  return f'{volume:.1g}' if 0 < volume < 0.1 else f'{volume:.1f}'


def _further(row: Mapping[str, Any], more: Mapping[str, metrics.Metric]) -> Iterator[str]:
  for name, metric in more.items():
    value = row[name]
    text = percent(value) if metric.share or value is None else f'{value:.1f}'
    infinite = row.get(f'{name}_infinite')
    yield f'{text} ({infinite} infinite)' if infinite else text


def detection(summary: Mapping[str, Any]) -> str:
  """Detection of tumours and cysts; see `lesions.summarize`. Empty where there are none."""
  rows = []
  for name, row in summary['classes'].items():
    if numbers := row.get('detection'):
      shown = [percent(numbers[key], numbers[f'{key}_interval']) for key in _DETECTION[:2]]
      alarms = numbers['false_positives_per_healthy']
      rows.append(
        (name, numbers['n_diseased'], numbers['n_healthy'], *shown,
         percent(numbers['harmonic_mean']),
         percent(numbers['lesion_sensitivity'], numbers['lesion_sensitivity_interval']),
         '–' if alarms is None else f'{alarms:.2f}')
      )  # fmt: skip
  header = ('class', 'with', 'without', 'sensitivity %', 'specificity %', 'harmonic mean %',
            'lesions found %', 'false positives per healthy scan')  # fmt: skip
  return markdown('Detection', header, rows) if rows else ''


def failures(failed: Sequence[tuple[str, str]]) -> str:
  """What could not be scored, as (case, reason)."""
  lines = [f'- {case}: {reason}' for case, reason in failed]
  return '\n'.join(['### Not scored, and in no mean', '', *lines, ''])


def by_dataset(summary: Mapping[str, Any]) -> str:
  """Mean Dice of each class in each dataset; empty where there are fewer than two datasets."""
  datasets = summary['datasets']
  if len(datasets) < 2:
    return ''
  rows = []
  for name in (name for name, row in summary['classes'].items() if _scored(row)):
    cells = [part['classes'].get(name, {}).get('dice') for part in datasets.values()]
    rows.append((name, *map(percent, cells)))
  rows.append(
    ('**mean over classes**', *(percent(part['mean_dice']) for part in datasets.values()))
  )
  return markdown('Dice % by dataset', ('class', *datasets), rows)


def published(summary: Mapping[str, Any]) -> str:
  """Published Dice beside ours, for every dataset of which some are known; else empty."""
  rows = []
  for entry in read_published():
    ours = _comparable(summary['datasets'].get(entry['dataset']), entry['classes'])
    if ours is not None:
      what = (
        entry['classes'][0] if len(entry['classes']) == 1 else f'mean of {len(entry["classes"])}'
      )
      test = f'{entry["test"]} ([source]({entry["source"]}))'
      rows.append((entry['dataset'], what, percent(ours), entry['model'], entry['dice'], test))
  if not rows:
    return ''
  header = ('dataset', 'class', 'ours, Dice %', 'model', 'published, Dice %', 'published for')
  note = 'Scans, splits and training data differ unless the last column says what was scored here.'
  return markdown('Published numbers', header, rows) + f'\n{note}\n'


def read_published() -> list[dict[str, Any]]:
  """The numbers of `shipped.PUBLISHED`: a list of objects, each with its source.

  Fields: `dataset` (a source of `input_pipeline`), `classes` (the number is the mean over these),
  `model`, `dice` in percent, `test` (which scans), `source` (address).
  """
  return json.loads(shipped.PUBLISHED.read_text(encoding='utf-8'))


def _comparable(part: Mapping[str, Any] | None, classes: Sequence[str]) -> float | None:
  """Our mean Dice over `classes`, or None where one of them was not scored."""
  values = [(part or {'classes': {}})['classes'].get(name, {}).get('dice') for name in classes]
  return None if None in values else sum(values) / len(values)


def to_csv(summary: Mapping[str, Any]) -> str:
  """One line for every dataset and class, and for the mean over classes; dataset 'all' is all."""
  header = ['dataset', 'class', 'n', 'n_both_empty']
  header += [f'{name}{end}' for name in ('dice', 'nsd') for end in ('', '_low', '_high')]
  header += ['nsd_1mm', 'nsd_3mm', 'hd95_mm', 'hd95_infinite', 'n_diseased', 'n_healthy']
  volumes = ('n', 'n_absent', 'n_above', 'mean_ml', 'max_ml')
  header += [*_DETECTION, *(f'false_positive_{name}' for name in volumes), *metrics.further()]
  lines = []
  for dataset, part in {'all': summary, **summary['datasets']}.items():
    for name, row in part['classes'].items():
      more = row.get('detection', {}) | {
        f'false_positive_{field}': value for field, value in row.get('false_positives', {}).items()
      }
      lines.append({'dataset': dataset, 'class': name, **_flat(row), **more})
    mean = {key.removeprefix('mean_'): part[key] for key in part if key.startswith('mean_')}
    lines.append({'dataset': dataset, 'class': 'mean over classes', **_flat(mean)})
  return csv_text(header, lines)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
  """Intervals as two columns."""
  flat = dict(row)
  for key in [key for key in row if key.endswith('_interval')]:
    name = key.removesuffix('_interval')
    flat[f'{name}_low'], flat[f'{name}_high'] = row[key]
  return flat


def csv_text(header: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
  """CSV; fields of rows that are not in the header are left out."""
  text = io.StringIO()
  writer = csv.DictWriter(text, header, extrasaction='ignore', lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue()


def markdown(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """A Markdown table under a heading; all columns but the first are set to the right."""
  lines = [f'### {title}', '', _line(header), '|:--' + '|--:' * (len(header) - 1) + '|']
  return '\n'.join([*lines, *map(_line, rows)]) + '\n'


def _line(cells: Iterable[Any]) -> str:
  texts = (str(cell).replace('|', r'\|') for cell in cells)  # in the name of a class or a folder
  return '|' + '|'.join(f' {text} ' if text else ' ' for text in texts) + '|'


def percent(value: float | None, interval: Sequence[float | None] | None = None) -> str:
  """A share in percent, with its interval where there is one: of two cases and more."""
  if value is None:
    return '–'
  bounds = [100 * bound for bound in interval or () if bound is not None]
  if len(bounds) < 2:
    return f'{100 * value:.1f}'
  return f'{100 * value:.1f} [{bounds[0]:.1f}, {bounds[1]:.1f}]'
