"""Checkpoint x cases -> per-case CSV, summary JSON, Markdown table and pictures."""

import csv
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from input_pipeline import bricks
from input_pipeline.anatomy import TEMPLATE
from mome_jax import checkpoint, explain, metrics, multihost, report, sharding, steps
from mome_jax.models import build_model
from mome_jax.segment import Segmenter
from mome_jax.text import prompts
from mome_jax.text.t5 import build_text_encoder
from mome_jax.text.tokenizer import Tokenizer


def evaluate(config, workdir: pathlib.Path) -> dict:
  """Scores the newest checkpoint of `workdir` on the held-out scans of its sources.

  Writes `evaluation/{cases.csv,summary.json,table.md}` and `pictures/*.png` into `workdir` and
  prints the table. Several hosts share the scans, and each segments its own on its own devices; the
  lead process draws its first ones, and computes and writes the scores of all.

  Args:
    config: see `configs/base.py`.
    workdir: of a training run.

  Returns:
    The summary; see `metrics.summarize`.

  Raises:
    CheckpointError: if there is no checkpoint.
  """
  mesh = sharding.local_mesh()
  jax.set_mesh(mesh)
  step, params = checkpoint.load_ema(workdir, jax.sharding.NamedSharding(mesh, sharding.REPLICATED))
  model = build_model(config.model)
  text_encoder = build_text_encoder(config.text)
  names = tuple(config.classes)
  ids, mask = Tokenizer().encode(prompts.default_prompts(names), config.text.max_length)
  text = jax.jit(functools.partial(steps.embed, text_encoder))(params, {'ids': ids, 'mask': mask})

  predict_step = jax.jit(steps.make_predict_step(model))
  segmenter = Segmenter(
    lambda windows: predict_step(params, text, jnp.asarray(windows), text),
    names=names,
    spacing=config.data.spacing,
    windows=config.data.windows,
    evaluation=config.evaluation,
  )
  routing = None
  if len(model.active_scales) > 1:
    routing_step = jax.jit(steps.make_routing_step(model))
    routing = explain.Routing(
      names,
      lambda windows: routing_step(params, text, jnp.asarray(windows), text),
      segmenter,
      model.active_scales,
    )

  lead = multihost.is_lead()
  pictures = workdir / 'pictures'
  if lead:
    pictures.mkdir(exist_ok=True)
  cases = [
    case for source in config.data.sources for case in bricks.open_volumes(config.data_dir, source)
  ]
  rows = []
  mine = cases[jax.process_index() :: jax.process_count()]
  for number, case in enumerate(tqdm.tqdm(mine, desc='evaluate', disable=not lead)):
    spacing = case.geometry.spacing
    segmentation = segmenter(case.image, spacing)
    rows += score_case(case, segmentation)
    if lead and number < config.evaluation.pictures:
      _draw(pictures / f'{case.name}.png', case, segmentation)
      if routing is not None:
        routing.add(case.image, spacing, segmentation)

  rows = multihost.gather_rows(rows)
  rows.sort(key=lambda row: (row['source'], row['case']))  # the same with any number of hosts
  summary = metrics.summarize(rows)
  if not lead:
    return summary
  folder = workdir / 'evaluation'
  folder.mkdir(exist_ok=True)
  _write_cases(folder / 'cases.csv', rows)
  (folder / 'summary.json').write_text(json.dumps({'step': step, **summary}, indent=2) + '\n')
  table = metrics.to_markdown(summary, title=f'{len(cases)} held-out scans, step {step}')
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
    truth = TEMPLATE.code_table([name])[case.codes, 0]
    pair = (metrics.restrict(mask, spacing, heights) for mask in (segmentation.mask(name), truth))
    scores = metrics.score(*pair, spacing)
    rows.append({'source': case.source, 'case': case.name, 'class': name, **vars(scores)})
  return rows


def _draw(path: pathlib.Path, case, segmentation) -> None:
  shown = [name for name in segmentation.names if name in case.supervised]
  table = TEMPLATE.code_table(shown)
  report.overlay(
    path,
    case.image,
    {name: segmentation.mask(name) for name in shown},
    case.geometry.spacing,
    truths={name: table[case.codes, i] for i, name in enumerate(shown)},
    title=f'{case.name}: prediction filled, reference dashed',
  )


def _write_cases(path: pathlib.Path, rows: list[dict]) -> None:
  with path.open('w', newline='') as file:
    writer = csv.DictWriter(file, ['source', 'case', 'class', *metrics.METRICS])
    writer.writeheader()
    writer.writerows(rows)
