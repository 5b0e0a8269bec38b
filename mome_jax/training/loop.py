"""The training loop, to be read from top to bottom."""

import contextlib
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from etils import epath

from input_pipeline import bricks, progress
from input_pipeline.batches import dataset
from mome_jax import checkpoint
from mome_jax.checkpoint import training_cases
from mome_jax.errors import UserError
from mome_jax.models import build_model
from mome_jax.pictures import router_pictures, training_curves
from mome_jax.text import prompt_inputs
from mome_jax.training import (
  multihost,
  parameter_groups,
  prefetch,
  profile,
  sharding,
  state,
  steps,
)
from mome_jax.training.log import MetricsLog
from mome_jax.training.optimizer import make_optimizer


class NonFiniteLossError(UserError):
  """Training diverged; the message names the step."""


def train(config, workdir: epath.Path) -> None:
  """Trains until `config.train.steps`, from the newest checkpoint in `workdir` if there is one.

  A run goes on with the config it was started with, but for `checkpoint.MAY_CHANGE`. Leaves a
  workdir that `checkpoint.load_model` reads, with `metrics.jsonl`, TensorBoard events and
  `pictures/training.png`; with banks of sparse experts also `experts.jsonl` and
  `pictures/experts_SCALE.png`.

  Args:
    config: see `configs/base.py`.
    workdir: created where missing.

  Raises:
    TextVectorError: if the text is frozen and its vectors are missing.
    CheckpointError: if `workdir` holds a run that learns something else, or cannot be read.
    NonFiniteLossError: if the loss is NaN or infinite; the last good checkpoint stays.
    Preempted: if the system asked the run to end; it has saved.
  """
  template = bricks.read_template(config.data_dir, config.data.sources, config.new_classes)
  config.new_classes = template.additions()  # a checkpoint knows its classes without the data
  tokenizer = checkpoint.find_tokenizer(workdir, config)
  text = prompt_inputs.for_training(config, template, tokenizer)
  config.text.d_model = text.width
  changes = checkpoint.check_same_run(workdir, config, text.vectors)
  stores = [bricks.open_bricks(config.data_dir, name, template) for name in config.data.sources]
  digests = {store.name: store.digest() for store in stores}

  # ---- mesh, model, state ------------------------------------------------------------------------
  mesh = sharding.make_mesh(config.mesh)
  jax.set_mesh(mesh)
  sharding.check_batch(mesh, config)
  model = build_model(config.model)
  optimizer = make_optimizer(config.train)
  train_state, abstract = state.init_state(config, mesh, model, text.encoder, optimizer)

  # ---- resume ------------------------------------------------------------------------------------
  checkpointer = checkpoint.Checkpointer(workdir, keep=config.train.keep_checkpoints)
  start = 0
  restored = checkpointer.restore(abstract, config)
  if restored is not None:
    train_state, position = restored
    start = position['step']
    checkpoint.check_same_data(workdir, position, digests)
    origin = checkpointer.load_start(abstract)
  else:
    if config.init.checkpoint:
      params, random = checkpoint.initialise(train_state.params, config.init.checkpoint)
      train_state = train_state.replace(params=params, ema=jax.tree.map(jnp.copy, params))
      print(f'starting from {config.init.checkpoint}; random: {", ".join(random) or "nothing"}')
    checkpointer.save_start(train_state.params)
    origin = jax.tree.map(jnp.copy, train_state.params)
  lead = multihost.is_lead()  # the one process that writes
  if start >= config.train.steps:
    checkpointer.close()
    if lead:
      print(f'{workdir} is trained: {start} of {config.train.steps} steps are done', flush=True)
    return
  if lead:
    log = MetricsLog(workdir, start)
    _print_start(workdir, train_state, start, changes)

  # ---- data and step -----------------------------------------------------------------------------
  batches = dataset.make_dataset(
    config.data,
    stores,
    tuple(config.classes),
    seed=config.seed,
    start_step=start,
    batch_size=config.train.batch_size,
    host=jax.process_index(),
    num_hosts=jax.process_count(),
  )
  feed = prefetch.prefetch(_on_devices(config, mesh, batches, text, start), ahead=2)
  table = template.code_table(config.classes)
  train_step = steps.jit_train_step(config, model, text.encoder, optimizer, abstract, table)
  distances = jax.jit(parameter_groups.distances, out_shardings=abstract.step.sharding)

  if lead:
    training_cases.note(workdir, stores, resumed=start > 0, init=config.init.checkpoint)
  # With the first checkpoint and not before: until then, the steps of another start are described.
  description = {'tokenizer': tokenizer, 'vectors': text.vectors}
  describe = functools.cache(lambda: checkpoint.save_description(workdir, config, **description))

  # ---- loop --------------------------------------------------------------------------------------
  bar = progress.bar(
    range(start, config.train.steps),
    initial=start,
    total=config.train.steps,
    desc='compile',
    disable=not lead,
  )
  window, waited, since = [], 0.0, time.perf_counter()
  trace = profile.Trace(workdir / 'profile', first=start + 2, steps=config.profile if lead else 0)
  with multihost.Preemption() as preemption, contextlib.closing(feed):
    for step in bar:
      trace.before(step)
      asked = time.perf_counter()
      batch, prompts = next(feed)
      waited += time.perf_counter() - asked
      if step == start:  # compilation is in no step's time
        train_step = train_step.lower(train_state, batch, prompts).compile()
        bar.set_description('train')
        waited, since = 0.0, time.perf_counter()
      train_state, metrics = train_step(train_state, batch, prompts)
      window.append(metrics)
      if len(window) > 1:  # one step ahead of the device, no more: times and the bar stay true
        jax.block_until_ready(window[-2])

      done = step + 1
      last = done == config.train.steps
      preempted = preemption.requested(done)
      save = last or preempted or done % config.train.checkpoint_every == 0
      if done % config.train.log_every == 0 or save:
        first = done - len(window) + 1
        window = jax.device_get(window)
        row = {k: np.mean([m[k] for m in window], 0) for k in metrics}
        bad = [(at, m) for at, m in enumerate(window, first) if not _is_finite(m)]
        if bad:
          checkpointer.close()
          at, m = bad[0]
          raise NonFiniteLossError(
            f'the loss is {m["loss"]}, its gradient {m["grad_norm"]} at step {at}; the checkpoint '
            'before it is kept. Lower config.train.learning_rate or inspect the data.'
          )
        seconds = time.perf_counter() - since
        row |= {'data_wait': waited / seconds, 'seconds_per_step': seconds / len(window)}
        row['patches_per_second'] = config.train.batch_size * len(window) / seconds
        if origin is not None:
          row |= jax.device_get(distances(origin, train_state.params))
        if lead:
          log.write(done, row, vectors=save)
        bar.set_postfix(loss=f'{row["loss"]:.3f}')
        window, waited, since = [], 0.0, time.perf_counter()
      if save:
        if lead:
          describe()
        position = {'step': done, 'seed': config.seed, 'data': digests}
        checkpointer.save(done, train_state, position)
      if preempted and not last:
        checkpointer.close()
        raise multihost.Preempted(f'asked to end, saved at step {done}; the same command resumes')

  # ---- finish ------------------------------------------------------------------------------------
  trace.close()
  checkpointer.close()
  if lead:
    training_curves.training_curves(workdir / 'pictures' / 'training.png', log.rows())
    for row in log.expert_rows()[-1:]:
      router_pictures.experts(workdir / 'pictures', row, config.classes)
    log.close()


def _on_devices(config, mesh, batches, text, start: int):
  """Batch and prompts of every step from `start` on."""
  for step, batch in zip(range(start, config.train.steps), batches, strict=False):
    placed = sharding.shard_batch(mesh, batch, spatial=config.mesh.spatial)
    yield placed, sharding.replicate(mesh, text.batch(seed=config.seed, step=step))


def _is_finite(metrics: dict[str, np.ndarray]) -> bool:
  """Whether a step left finite parameters: a finite loss may have a gradient that is not."""
  return bool(np.isfinite(metrics['loss']) and np.isfinite(metrics['grad_norm']))


def _print_start(
  workdir: epath.Path, train_state: state.TrainState, start: int, changes: list[str]
) -> None:
  if start == 0:
    overview = parameter_overview.get_parameter_overview(train_state.params, include_stats=False)
    (workdir / 'parameters.txt').write_text(overview + '\n')
  count = sum(p.size for p in jax.tree.leaves(train_state.params))
  print(f'{count:,} parameters on {jax.device_count()} {jax.default_backend()} device(s)', end='; ')
  print(f'resuming {workdir} at step {start}' if start else f'training in {workdir}', flush=True)
  if start and changes:
    print(f'changed since: {", ".join(changes)}', flush=True)
