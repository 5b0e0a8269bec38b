"""Training of a peer on the batches that MoME sees."""

import os
import pathlib
import time

import numpy as np
import torch
from etils import epath

from input_pipeline import bricks
from input_pipeline.batches import dataset
from input_pipeline.progress import bar as bar_of
from mome_jax.checkpoint import training_cases
from mome_jax.training.log import MetricsLog
from tests.benchmarks.peers.measurements import CHECKPOINT
from tests.benchmarks.peers.recipes import EXPERIMENT, RECIPES
from tests.benchmarks.peers.trainer import Trainer

_SAVE_EVERY = 180.0  # seconds


def open_stores(config) -> list[bricks.BrickStore]:
  """The training scans of `config`."""
  template = bricks.read_template(config.data_dir, config.data.sources, ())
  return [bricks.open_bricks(config.data_dir, name, template) for name in config.data.sources]


def make_batches(config, start_step: int = 0):
  """Batches of `config`, from a step on; see `dataset.make_dataset`."""
  return dataset.make_dataset(
    config.data,
    open_stores(config),
    config.classes,
    seed=config.seed,
    start_step=start_step,
    batch_size=config.train.batch_size,
  )


def make_trainer(peer: str, config, device: str) -> Trainer:
  """A fresh one."""
  template = bricks.read_template(config.data_dir, config.data.sources, ())
  return Trainer(RECIPES[peer], config, template.code_table(config.classes), device)


def train(
  peer: str, config, workdir: pathlib.Path, *, device: str, steps: int = 0, minutes: float = 0.0
) -> Trainer:
  """Trains for a number of steps or minutes, from the checkpoint in `workdir` if there is one.

  Writes `metrics.jsonl`, `training_cases.json` and `checkpoint.pt` there; that names the peer.

  Args:
    peer: one of `RECIPES`.
    config: of `recipes.make_config`.
    workdir: created where missing.
    device: of PyTorch.
    steps: of the whole training; or
    minutes: of it, by the clock; what a killed run did after its last checkpoint does not count.

  Raises:
    ValueError: if `workdir` holds another training.
    FloatingPointError: if the loss is not finite.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  trainer = make_trainer(peer, config, device)
  settings = {'experiment': config.experiment, 'peer': peer, 'steps': steps, 'minutes': minutes}
  settings |= {'seed': config.seed, 'sources': config.data.sources, 'classes': config.classes}
  before = 0.0
  if (workdir / CHECKPOINT).exists():
    saved = torch.load(workdir / CHECKPOINT, map_location=trainer.device)
    before_it = {'experiment': EXPERIMENT, **saved['settings']}
    if before_it != settings:
      raise ValueError(f'{workdir} holds {before_it}, not {settings}; choose another --workdir')
    trainer.restore(saved)
    before = saved['seconds']
  training_cases.note(epath.Path(workdir), open_stores(config), resumed=trainer.step > 0, init='')
  log = MetricsLog(workdir, trainer.step)
  batches = make_batches(config, trainer.step)
  began = time.perf_counter()
  elapsed = lambda: before + time.perf_counter() - began
  progress = lambda: trainer.step / steps if steps else elapsed() / (60 * minutes)
  window, since, saved_at = [], elapsed(), elapsed()
  done = progress()
  with bar_of(desc='train', initial=trainer.step, total=steps or None) as bar:
    while done < 1:
      window.append(trainer.update(next(batches), done))
      bar.update()
      done = progress()
      if done >= 1 or trainer.step % config.train.log_every == 0:
        row = {k: np.mean([float(m[k]) for m in window]) for k in window[0]}
        if not np.isfinite(row['loss']):
          raise FloatingPointError(f'the loss is {row["loss"]} at step {trainer.step}')
        row['seconds_per_step'] = (elapsed() - since) / len(window)
        log.write(trainer.step, row, vectors=False)
        bar.set_postfix(loss=f'{row["loss"]:.3f}')
        window, since = [], elapsed()
      if done >= 1 or elapsed() > saved_at + _SAVE_EVERY:
        content = {**trainer.state(), 'settings': settings, 'seconds': elapsed()}
        _save(workdir / CHECKPOINT, content)
        saved_at = elapsed()
  log.close()
  return trainer


def _save(path: pathlib.Path, content: dict) -> None:
  """Writes all of it or nothing."""
  partial = path.with_suffix('.partial')
  torch.save(content, partial)
  os.replace(partial, path)
