"""What the mixture of a trained MoME is worth: scores with its gates forced.

  PYTHONPATH=. python tests/benchmarks/experts_alone.py runs/openkbp_cpu --cases=8

The same parameters segment the first held-out scans with the gates as trained, with all weight on
one scale, and with equal weights. Three oracles look at the reference: the scale that is best for a
class, for a class in a scan, and in every voxel any scale that is right there, without rivals. No
router over these experts exceeds the last. Prints two Markdown tables.
"""

import argparse
import collections
import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline import bricks
from mome_jax import checkpoint, ops
from mome_jax.checkpoint import training_cases
from mome_jax.evaluate import compare, held_out, score_checkpoint, score_files
from mome_jax.inference.loaded_model import Predictor
from mome_jax.text.prompts import default_prompts

_CERTAIN = 1e4  # added to a router logit: the other scales' weights are then 0
_WHOLE = 10.0  # its hyperbolic tangent is 1
Row = dict[str, Any]


def forced(params: dict, level: int | None) -> dict:
  """Parameters whose router gives all weight to one expert, or the same to all (None)."""
  router = params['model']['router']
  if level is None:
    router = jax.tree.map(lambda x: 0 * x, router)
  else:
    router = router | {f'bias_{level}': router[f'bias_{level}'] + _CERTAIN}
  return _without_anchor(params | {'model': params['model'] | {'router': router}})


def _without_anchor(params: dict) -> dict:
  """Parameters of which the mixture is all that counts."""
  model = params['model']
  whole = {'mixture_share': jnp.float32(_WHOLE)} if 'mixture_share' in model else {}
  return params | {'model': model | whole}


def best_scale(alone: Sequence[Sequence[Row]], group: Callable[[Row], Any]) -> list[Row]:
  """The rows of the scale with the highest mean Dice in each group of rows.

  Args:
    alone: of each scale, its rows, of the same cases and classes in the same order.
    group: what a choice is made for.
  """
  members = collections.defaultdict(list)
  for number, row in enumerate(alone[0]):
    members[group(row)].append(number)
  chosen: dict[int, Row] = {}
  for numbers in members.values():
    best = max(
      alone, key=lambda rows, numbers=numbers: np.nansum([rows[n]['dice'] for n in numbers])
    )
    chosen |= {n: best[n] for n in numbers}
  return [chosen[n] for n in range(len(alone[0]))]


def best_voxel(run: pathlib.Path, scans: Sequence[bricks.VolumeRecord]) -> list[Row]:
  """Rows of masks that are right in every voxel in which any scale is."""
  masks = []
  for choose in (jnp.maximum, jnp.minimum):
    with mock.patch.object(ops, 'fuse', functools.partial(_extreme, choose)):
      predictor = Predictor(run)
      predictor.params = _without_anchor(predictor.params)
      names = predictor.config.classes
      prompts = default_prompts(names, predictor.template)
      segmenter = predictor.segmenter((), prompts, rules=(), free=names)
      masks.append([segmenter(scan.image, scan.geometry.spacing) for scan in scans])
  rows = []
  for scan, high, low in zip(scans, *masks, strict=True):
    for name, truth in score_checkpoint.truths(scan, tuple(high.free), high.template):
      claims = [score_checkpoint.contoured(scan, name, s.mask(name)) for s in (high, low)]
      mask = np.where(truth, *claims)
      spacing = scan.geometry.spacing
      row = score_files.score(scan.source, scan.name, name, mask, truth, spacing)
      rows.append(row | {'split': scan.split})
  return rows


def _extreme(choose: Callable, scores: Sequence[jax.Array], *_: Any) -> jax.Array:
  """In place of `ops.fuse`: the highest of all scales' logits, or the lowest."""
  finest = scores[0].shape[-1]
  return functools.reduce(choose, [ops.upsample(s, finest // s.shape[-1]) for s in scores])


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('run', type=pathlib.Path, help='workdir or model folder')
  parser.add_argument('--data_dir', default='runs/data')
  parser.add_argument('--cases', type=int, help='how many scans; default all')
  args = parser.parse_args()
  predictor = Predictor(args.run)
  if len(predictor.model.active_scales) < 2:
    parser.error(f'{args.run}: this model mixes no scales; name a run with model.experts=pyramid')
  config, trained = predictor.config, predictor.params
  template = bricks.read_template(args.data_dir, config.data.sources, config.new_classes)
  part = held_out.find(
    args.data_dir,
    config.data.sources,
    template,
    split=config.evaluation.split,
    trained=training_cases.read(checkpoint.folder_of(args.run)),
  )[0]
  scans = list(itertools.islice(part.read(), args.cases))
  variants = {'mixture': trained, 'equal weights': forced(trained, None)}
  for level, scale in enumerate(predictor.model.active_scales):
    name = f'{config.data.spacing[0] * 2**scale:g} mm alone'
    variants[name] = forced(trained, level)
  prompts = default_prompts(config.classes, template)
  runs = {}
  for name, predictor.params in variants.items():
    segmenter = predictor.segmenter(config.classes, prompts, template)
    runs[name] = [
      row
      for scan in scans
      for row in score_checkpoint.score_case(scan, segmenter(scan.image, scan.geometry.spacing))
    ]
    print(f'{name}: {len(scans)} scans', flush=True)
  alone = [rows for name, rows in runs.items() if name.endswith('alone')]
  runs['oracle: best scale of a class'] = best_scale(alone, lambda row: row['class'])
  by_scan = best_scale(alone, lambda row: (row['class'], row['case']))
  runs['oracle: best scale of a class and scan'] = by_scan
  runs['oracle: any scale that is right in a voxel'] = best_voxel(args.run, scans)
  print('\n' + compare.overview(runs))


if __name__ == '__main__':
  main()
