"""What the mixture of a trained MoME is worth: scores with its gates forced.

  PYTHONPATH=. python tests/benchmarks/experts_alone.py runs/openkbp_cpu --cases=8

The same parameters segment the first held-out scans with the gates as trained, with all weight on
one scale, and with equal weights. Prints two Markdown tables.
"""

import argparse
import itertools
import pathlib

import jax

from input_pipeline import bricks
from mome_jax import checkpoint
from mome_jax.checkpoint import training_cases
from mome_jax.evaluate import compare, held_out, score_checkpoint
from mome_jax.inference.loaded_model import Predictor
from mome_jax.text.prompts import default_prompts

_CERTAIN = 1e4  # added to a router logit: the other scales' weights are then 0


def forced(params: dict, level: int | None) -> dict:
  """Parameters whose router gives all weight to one expert, or the same to all (None)."""
  router = params['model']['router']
  if level is None:
    router = jax.tree.map(lambda x: 0 * x, router)
  else:
    router = router | {f'bias_{level}': router[f'bias_{level}'] + _CERTAIN}
  return params | {'model': params['model'] | {'router': router}}


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
  print('\n' + compare.overview(runs))


if __name__ == '__main__':
  main()
