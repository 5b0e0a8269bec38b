"""The training loop, to be read from top to bottom."""

import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from clu import metric_writers, parameter_overview

from input_pipeline import bricks, pipeline
from input_pipeline.anatomy import TEMPLATE
from mome_jax import checkpoint, report, sharding, state, steps
from mome_jax.models import build_model
from mome_jax.text import prompts
from mome_jax.text.t5 import build_text_encoder
from mome_jax.text.tokenizer import Tokenizer


class NonFiniteLossError(RuntimeError):
  """Training diverged; the message names the steps."""


def train(config, workdir: pathlib.Path) -> None:
  """Trains until `config.train.steps`, from the newest checkpoint in `workdir` if there is one.

  Leaves `checkpoints/`, `config.json`, `metrics.jsonl`, TensorBoard events and
  `pictures/training.png` in `workdir`; with banks of sparse experts also `experts.jsonl`.

  Args:
    config: see `configs/base.py`.
    workdir: created where missing.

  Raises:
    NonFiniteLossError: if the loss is NaN or infinite; the last good checkpoint stays.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  checkpoint.save_config(workdir, config)

  # ---- mesh, model, state ------------------------------------------------------------------------
  mesh = sharding.make_mesh(config.mesh)
  jax.set_mesh(mesh)
  tokenizer = Tokenizer()
  model = build_model(config.model)
  text_encoder = build_text_encoder(config.text)
  optimizer = state.make_optimizer(config.train)
  train_state, abstract = state.init_state(config, mesh, model, text_encoder, optimizer)

  # ---- resume ------------------------------------------------------------------------------------
  checkpointer = checkpoint.Checkpointer(workdir, keep=config.train.keep_checkpoints)
  start = 0
  restored = checkpointer.restore(abstract)
  if restored is not None:
    train_state, position = restored
    start = position['step']
  log = MetricsLog(workdir, start)
  if start == 0:
    overview = parameter_overview.get_parameter_overview(train_state.params, include_stats=False)
    (workdir / 'parameters.txt').write_text(overview + '\n')
  count = sum(p.size for p in jax.tree.leaves(train_state.params))
  print(f'{count:,} parameters on {jax.device_count()} {jax.default_backend()} device(s)', end='; ')
  print(f'resuming {workdir} at step {start}' if start else f'training in {workdir}')

  # ---- data and step -----------------------------------------------------------------------------
  batches = pipeline.make_dataset(
    config.data,
    [bricks.open_bricks(config.data_dir, source) for source in config.data.sources],
    tuple(config.classes),
    seed=config.seed,
    start_step=start,
    batch_size=config.train.batch_size,
    host=jax.process_index(),
    num_hosts=jax.process_count(),
  )
  loss_fn = steps.make_loss_fn(
    model,
    text_encoder,
    jnp.asarray(TEMPLATE.code_table(config.classes)),
    config.train,
  )
  default = prompts.default_prompts(config.classes)
  train_step = jax.jit(steps.make_train_step(loss_fn, optimizer, config.train), donate_argnums=0)

  # ---- loop --------------------------------------------------------------------------------------
  bar = tqdm.tqdm(
    range(start, config.train.steps), initial=start, total=config.train.steps, desc='compile'
  )
  window, waited, since = [], 0.0, time.perf_counter()
  for step in bar:
    asked = time.perf_counter()
    batch = sharding.shard_batch(mesh, next(batches))
    waited += time.perf_counter() - asked
    sampled = prompts.sample_prompts(config.classes, seed=config.seed, step=step)
    ids, mask = tokenizer.encode(sampled + default, config.text.max_length)
    tokens = sharding.replicate(mesh, {'ids': ids, 'mask': mask})
    train_state, metrics = train_step(train_state, batch, tokens)
    window.append(metrics)
    if step == start:  # compilation is in no step's time
      jax.block_until_ready(metrics)
      bar.set_description('train')
      waited, since = 0.0, time.perf_counter()
    elif len(window) > 1:  # one step ahead of the device, no more: times and the bar stay true
      jax.block_until_ready(window[-2])

    done = step + 1
    last = done == config.train.steps
    save = last or done % config.train.checkpoint_every == 0
    if done % config.train.log_every == 0 or save:
      first = done - len(window) + 1
      window = jax.device_get(window)
      row = {k: np.mean([m[k] for m in window], 0) for k in metrics}
      if not np.isfinite(row['loss']):
        checkpointer.close()
        raise NonFiniteLossError(
          f'the loss is {row["loss"]} between steps {first} and {done}; the checkpoint before '
          'them is kept. Lower config.train.learning_rate or inspect the data.'
        )
      seconds = time.perf_counter() - since
      row |= {'data_wait': waited / seconds, 'seconds_per_step': seconds / len(window)}
      log.write(done, {k: float(v) for k, v in row.items() if np.ndim(v) == 0})
      if save:
        log.write_experts(done, {k: v.tolist() for k, v in row.items() if np.ndim(v)})
      bar.set_postfix(loss=f'{row["loss"]:.3f}')
      window, waited, since = [], 0.0, time.perf_counter()
    if save:
      checkpointer.save(done, train_state, {'step': done, 'seed': config.seed})

  # ---- finish ------------------------------------------------------------------------------------
  checkpointer.close()
  report.training_curves(workdir / 'pictures' / 'training.png', log.rows())
  log.close()


class MetricsLog:
  """`metrics.jsonl`, one JSON object a log step, and the same numbers for TensorBoard.

  `experts.jsonl` holds the vectors and matrices of the banks, one object a checkpoint. Lines beyond
  `start`, which a killed run wrote after its last checkpoint, are removed.
  """

  def __init__(self, workdir: pathlib.Path, start: int):
    self._path = workdir / 'metrics.jsonl'
    self._experts = workdir / 'experts.jsonl'
    for path in (self._path, self._experts):
      if path.exists():
        kept = [row for row in _complete_rows(path) if row['step'] <= start]
        path.write_text(''.join(map(_line, kept)))
    self._tensorboard = metric_writers.SummaryWriter(str(workdir / 'tensorboard'))

  def rows(self) -> list[dict[str, float]]:
    """All lines of `metrics.jsonl`."""
    return _complete_rows(self._path)

  def write(self, step: int, row: dict[str, float]) -> None:
    """Appends one line."""
    _append(self._path, {'step': step, **row})
    self._tensorboard.write_scalars(step, row)

  def write_experts(self, step: int, row: dict[str, list]) -> None:
    """Appends one line of vectors and matrices, if there are any."""
    if row:
      _append(self._experts, {'step': step, **row})

  def close(self) -> None:
    """Flushes the TensorBoard events."""
    self._tensorboard.flush()
    self._tensorboard.close()


def _append(path: pathlib.Path, row: dict) -> None:
  with path.open('a') as file:
    file.write(_line(row))


def _line(row: dict) -> str:
  return json.dumps(row) + '\n'


def _complete_rows(path: pathlib.Path) -> list[dict]:
  """All complete lines of a JSONL file, none where there is no file."""
  rows = []
  if not path.exists():
    return rows
  for line in path.read_text().splitlines():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:  # the line a killed run was writing
      break
  return rows
