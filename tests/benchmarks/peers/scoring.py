"""Scores of a trained peer, with the code that scores MoME."""

import pathlib

import tqdm

from input_pipeline import bricks
from mome_jax import evaluate, results
from tests.benchmarks.peers.inference import make_segmenter


def score(trainer, config, workdir: pathlib.Path, *, limit: int | None = None) -> str:
  """Writes `evaluation/` of the held-out scans into `workdir`; returns its table.

  Args:
    trainer: at the end of training.
    config: of `recipes.make_config`.
    workdir: of the run.
    limit: scans to take; None is all.
  """
  segmenter = make_segmenter(trainer.averaged(), config, trainer.device)
  template = bricks.read_template(config.data_dir, config.data.sources, ())
  cases = [
    case
    for source in config.data.sources
    for case in bricks.open_volumes(config.data_dir, source, template)
  ][:limit]
  rows = []
  for case in tqdm.tqdm(cases, desc='evaluate'):
    rows += evaluate.score_case(case, segmenter(case.image, case.geometry.spacing))
  rules = ', '.join(segmenter.rules) or 'none'
  title = f'{len(cases)} held-out scans, step {trainer.step}, post-processing: {rules}'
  origin = {'step': trainer.step, 'postprocess': segmenter.rules}
  return results.write(workdir / 'evaluation', rows, title=title, origin=origin)[1]
