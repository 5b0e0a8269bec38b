"""Checkpoint x cases -> per-case CSV, summary JSON, Markdown table and pictures."""

import csv
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from etils import epath

from input_pipeline import bricks
from mome_jax import explain, metrics, multihost, report, steps
from mome_jax.predictor import Predictor
from mome_jax.text import prompts

_PROMPTS = {'default': prompts.default_prompts, 'held_out': prompts.held_out_prompts}


def evaluate(config, workdir: epath.Path) -> dict:
  """Scores the newest checkpoint of `workdir` on the held-out scans of its sources.

  Writes `evaluation/{cases.csv,summary.json,table.md}` and `pictures/*.png` into `workdir` and
  prints the table. Several hosts share the scans, and each segments its own on its own devices; the
  lead process draws its first ones, and computes and writes the scores of all. With
  `evaluation.prompts='held_out'` there are no pictures and the folder is `evaluation_held_out`.

  Args:
    config: see `configs/base.py`; usually the model's own (`checkpoint.load_config`).
    workdir: of a training run, or a model folder.

  Returns:
    The summary; see `metrics.summarize`.

  Raises:
    CheckpointError: if there is no checkpoint.
    PromptError: if `evaluation.prompts` names nothing, or a class has no held-out name.
  """
  if config.evaluation.prompts not in _PROMPTS:
    known = ', '.join(_PROMPTS)
    raise prompts.PromptError(
      f'evaluation.prompts is {config.evaluation.prompts!r}; known: {known}'
    )
  held_out = config.evaluation.prompts == 'held_out'
  predictor = Predictor(workdir, config)
  names = tuple(config.classes)
  template = bricks.read_template(config.data_dir, config.data.sources, config.new_classes)
  texts = _PROMPTS[config.evaluation.prompts](names, template)
  segmenter = predictor.segmenter(names, texts, template)
  routing = None
  if len(predictor.model.active_scales) > 1 and not held_out:
    routing_step = jax.jit(steps.make_routing_step(predictor.model))
    text = predictor.embed(texts)[: len(names)]
    routing = explain.Routing(
      names,
      lambda windows: routing_step(predictor.params, text, jnp.asarray(windows), predictor.context),
      segmenter,
      predictor.model.active_scales,
    )

  lead = multihost.is_lead()
  pictures = workdir / 'pictures'
  if lead:
    pictures.mkdir(exist_ok=True)
  cases = [
    case
    for source in config.data.sources
    for case in bricks.open_volumes(config.data_dir, source, template)
  ]
  rows = []
  mine = cases[jax.process_index() :: jax.process_count()]
  for number, case in enumerate(tqdm.tqdm(mine, desc='evaluate', disable=not lead)):
    spacing = case.geometry.spacing
    segmentation = segmenter(case.image, spacing)
    rows += score_case(case, segmentation)
    if lead and number < config.evaluation.pictures and not held_out:
      _draw(pictures / f'{case.name}.png', case, segmentation)
      if routing is not None:
        routing.add(case.image, spacing, segmentation)

  rows = multihost.gather_rows(rows)
  rows.sort(key=lambda row: (row['source'], row['case']))  # the same with any number of hosts
  summary = metrics.summarize(rows)
  if not lead:
    return summary
  folder = workdir / ('evaluation_held_out' if held_out else 'evaluation')
  folder.mkdir(exist_ok=True)
  _write_cases(folder / 'cases.csv', rows)
  result = {'step': predictor.step, 'postprocess': segmenter.rules, 'prompts': texts, **summary}
  (folder / 'summary.json').write_text(json.dumps(result, indent=2) + '\n')
  rules = ', '.join(segmenter.rules) or 'none'
  title = f'{len(cases)} held-out scans, step {predictor.step}, post-processing: {rules}'
  if held_out:
    title += ', prompts not seen in training'
  table = metrics.to_markdown(summary, title=title)
  (folder / 'table.md').write_text(table + '\n')
  if routing is not None and routing.cases:
    routing.draw(pictures / 'routing.png')
  print(f'\n{table}\n\nTable and scores: {folder}\nPictures: {pictures}')
  return summary


def score_case(case, segmentation) -> list[dict]:
  """Scores of every class that the case labels, inside the heights where it was contoured.

  Args:
    case: a `bricks.VolumeRecord`.
    segmentation: of its image.

  Returns:
    One row per (case, class): source, case, class and the fields of `metrics.Scores`.
  """
  spacing = case.geometry.spacing
  rows = []
  for name in segmentation.names:
    if name not in case.supervised:
      continue
    heights = case.slice_ranges.get(name, (-np.inf, np.inf))
    truth = segmentation.template.code_table([name])[case.codes, 0]
    pair = (metrics.restrict(mask, spacing, heights) for mask in (segmentation.mask(name), truth))
    scores = metrics.score(*pair, spacing)
    rows.append({'source': case.source, 'case': case.name, 'class': name, **vars(scores)})
  return rows


def _draw(path: epath.Path, case, segmentation) -> None:
  shown = [name for name in segmentation.names if name in case.supervised]
  table = segmentation.template.code_table(shown)
  report.overlay(
    path,
    case.image,
    {name: segmentation.mask(name) for name in shown},
    case.geometry.spacing,
    truths={name: table[case.codes, i] for i, name in enumerate(shown)},
    title=f'{case.name}: prediction filled, reference dashed',
  )


def _write_cases(path: epath.Path, rows: list[dict]) -> None:
  text = io.StringIO()
  writer = csv.DictWriter(text, ['source', 'case', 'class', *metrics.METRICS])
  writer.writeheader()
  writer.writerows(rows)
  path.write_text(text.getvalue())
