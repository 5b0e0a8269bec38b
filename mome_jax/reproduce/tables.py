"""The tables of the benchmark: every row, model beside model."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mome_jax.errors import writing
from mome_jax.evaluate import compare, metrics, score_files
from mome_jax.evaluate import tables as layout
from mome_jax.reproduce import families

Folders = Mapping[str, pathlib.Path]


def write(
  folder: pathlib.Path,
  models: Folders,
  others: Folders,
  sources: tuple[Sequence[str], Sequence[str]],
  classes: Sequence[str],
) -> str:
  """Writes `README.md` with all tables, and each as a file of its own; returns the text.

  Args:
    folder: created where missing.
    models: model -> workdir with its scores; each split has tables of its own.
    others: model -> folder with its scores on datasets that are scored only.
    sources: that are prepared: trained on, and scored only.
    classes: of the experiment.
  """
  scores = {split: _of_split(models, split) for split in score_files.FOLDERS}
  outside = {
    model: [row for part in folders(path) for row in score_files.read(part)]
    for model, path in others.items()
    if folders(path)
  }
  title = 'Dice % on held-out {} scans'
  trained = [
    _datasets(title.format(split), scores[split], families.TRAINED_SOURCES, sources[0], classes)
    for split in score_files.FOLDERS
    if scores[split]
  ]
  parts = {
    'datasets.md': _joined(trained),
    'external.md': _datasets(
      'Dice % on datasets that were never trained on, validation and test scans together',
      outside, families.EXTERNAL_SOURCES, sources[1], classes,
    ),
    'detection.md': _joined(_detection(split, scores[split]) for split in score_files.FOLDERS),
    'comparison.md': _joined(_comparison(split, scores[split]) for split in score_files.FOLDERS),
  }  # fmt: skip
  whole = _joined(parts.values())
  with writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {**parts, 'README.md': whole}.items():
      (folder / name).write_text(text + '\n', encoding='utf-8')
  return whole


def _of_split(models: Folders, split: str) -> dict[str, list[dict[str, Any]]]:
  """The rows of each model that has whole scores of a split."""
  places = {model: workdir / score_files.FOLDERS[split] for model, workdir in models.items()}
  return {
    model: score_files.read(place)
    for model, place in places.items()
    if score_files.read_summary(place)
  }


def _joined(texts: Iterable[str]) -> str:
  return '\n'.join(text for text in texts if text)


def folders(workdir: pathlib.Path) -> list[pathlib.Path]:
  """The whole evaluations in a folder: of validation scans, of test scans."""
  places = (workdir / name for name in score_files.FOLDERS.values())
  return [place for place in places if score_files.read_summary(place)]


def _datasets(
  title: str,
  scores: Mapping[str, Sequence[Mapping[str, Any]]],
  names: Sequence[str],
  prepared: Sequence[str],
  classes: Sequence[str],
) -> str:
  """A row for each class of each dataset of the benchmark; why a cell is empty is said."""
  summaries = {model: metrics.summarize(rows) for model, rows in scores.items()}
  lines: list[tuple[str, ...]] = []
  for name in names:
    for row in families.rows(name, classes):
      cells = [_cell(summary, name, row) for summary in summaries.values()]
      counts = {
        summary['datasets'][name]['classes'][row]['n']
        for summary in summaries.values()
        if row in summary['datasets'].get(name, {}).get('classes', {})
      }
      number = str(max(counts, default=0)) if name in prepared else 'not here'
      lines.append((name, row, number, *cells))
  means = [layout.percent(summary['mean_dice']) for summary in summaries.values()]
  lines.append(('**all**', '**mean over classes**', '', *(f'**{mean}**' for mean in means)))
  return layout.markdown(title, ('dataset', 'class', 'scans', *scores), lines)


def _cell(summary: Mapping[str, Any], source: str, name: str) -> str:
  row = summary['datasets'].get(source, {}).get('classes', {}).get(name)
  return layout.percent(row['dice']) if row else '–'


def _detection(split: str, scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
  """Tumours and cysts found in the scans of a split, of each model."""
  parts = []
  for model, rows in scores.items():
    text = layout.detection(metrics.summarize(rows))
    parts.append(text.replace('Detection', f'Detection, {model}, {split} scans', 1))
  return _joined(parts)


def _comparison(split: str, scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
  """All models against the first, on what all of them scored of a split; or why not."""
  if len(scores) < 2:
    return ''
  of_models = [set(map(compare.key, rows)) for rows in scores.values()]
  common, every = set.intersection(*of_models), set.union(*of_models)
  rows = {
    model: [row for row in rows if compare.key(row) in common] for model, rows in scores.items()
  }
  try:
    text = compare.overview(rows)
  except score_files.ResultsError as error:
    return f'### No comparison on {split} scans\n\n{error}\n'
  heading = f'## Comparison on held-out {split} scans\n\n'
  if common == every:
    return heading + text
  numbers = [len({one[:2] for one in keys}) for keys in (common, every)]
  return (
    f'{heading}Of what all models scored, in {numbers[0]} of {numbers[1]} scans: the tables above '
    f'have more, and other means.\n\n{text}'
  )
