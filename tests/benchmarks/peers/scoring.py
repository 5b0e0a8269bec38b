"""Scores of a trained peer, with the code that scores MoME."""

import dataclasses
import pathlib

from etils import epath

from input_pipeline import bricks, progress
from mome_jax.checkpoint import training_cases
from mome_jax.evaluate import held_out, score_checkpoint, score_files
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
  part = held_out.find(
    config.data_dir,
    config.data.sources,
    template,
    split=config.evaluation.split,
    trained=training_cases.read(epath.Path(workdir)),
  )[0]
  part = dataclasses.replace(part, places=part.places[:limit])
  rows = []
  for case in progress.bar(part.read(), total=len(part), desc='evaluate'):
    segmentation = segmenter(case.image, case.geometry.spacing)
    patient = part.patients.get(case.key, '')
    rows += score_checkpoint.score_case(case, segmentation, patient)
  rules = ', '.join(segmenter.settings.rules) or 'none'
  title = f'{part.title()}, step {trainer.step}, post-processing: {rules}'
  origin = part.origin() | {'step': trainer.step, 'postprocess': segmenter.settings.rules}
  return score_files.write(workdir / 'evaluation', rows, title=title, origin=origin)[1]
