"""The training loop, to be read from top to bottom."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from clu import metric_writers, parameter_overview
from etils import epath

from input_pipeline import bricks, pipeline
from mome_jax import checkpoint, report, sharding, state, steps, tracing
from mome_jax.models import build_model
from mome_jax.text import inputs


class NonFiniteLossError(RuntimeError):
  """Training diverged; the message names the steps."""


def train(config, workdir: epath.Path) -> None:
  """Trains until `config.train.steps`, from the newest checkpoint in `workdir` if there is one.

  Leaves a workdir that `checkpoint.load_model` reads, with `metrics.jsonl`, TensorBoard events and
  `pictures/training.png`.

  Args:
    config: see `configs/base.py`.
    workdir: created where missing.

  Raises:
    TextVectorError: if the text is frozen and its vectors are missing.
    NonFiniteLossError: if the loss is NaN or infinite; the last good checkpoint stays.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  template = bricks.read_template(config.data_dir, config.data.sources, config.new_classes)
  config.new_classes = template.additions()  # a checkpoint knows its classes without the data
  tokenizer = checkpoint.find_tokenizer(workdir, config)
  text = inputs.for_training(config, template, tokenizer)
  config.text.d_model = text.width
  checkpoint.save_description(workdir, config, tokenizer=tokenizer, vectors=text.vectors)

  # ---- mesh, model, state ------------------------------------------------------------------------
  mesh = sharding.make_mesh(config.mesh)
  jax.set_mesh(mesh)
  model = build_model(config.model)
  optimizer = state.make_optimizer(config.train)
  train_state, abstract = state.init_state(config, mesh, model, text.encoder, optimizer)

  # ---- resume ------------------------------------------------------------------------------------
  checkpointer = checkpoint.Checkpointer(workdir, keep=config.train.keep_checkpoints)
  start = 0
  restored = checkpointer.restore(abstract)
  if restored is not None:
    train_state, position = restored
    start = position['step']
  elif config.init.checkpoint:
    params, random = checkpoint.initialise(train_state.params, config.init.checkpoint)
    train_state = train_state.replace(params=params, ema=jax.tree.map(jnp.copy, params))
    print(f'starting from {config.init.checkpoint}; random: {", ".join(random) or "nothing"}')
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
    [bricks.open_bricks(config.data_dir, name, template) for name in config.data.sources],
    tuple(config.classes),
    seed=config.seed,
    start_step=start,
    batch_size=config.train.batch_size,
    host=jax.process_index(),
    num_hosts=jax.process_count(),
  )
  loss_fn = steps.make_loss_fn(
    model,
    text.encoder,
    jnp.asarray(template.code_table(config.classes)),
    config.train,
  )
  train_step = jax.jit(steps.make_train_step(loss_fn, optimizer, config.train), donate_argnums=0)

  # ---- loop --------------------------------------------------------------------------------------
  bar = tqdm.tqdm(
    range(start, config.train.steps), initial=start, total=config.train.steps, desc='compile'
  )
  window, waited, since = [], 0.0, time.perf_counter()
  trace = tracing.Trace(workdir / 'profile', first=start + 2, steps=config.profile)
  for step in bar:
    trace.before(step)
    asked = time.perf_counter()
    batch = sharding.shard_batch(mesh, next(batches))
    waited += time.perf_counter() - asked
    prompts = sharding.replicate(mesh, text.batch(seed=config.seed, step=step))
    train_state, metrics = train_step(train_state, batch, prompts)
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
      row = {k: float(np.mean([m[k] for m in jax.device_get(window)])) for k in metrics}
      if not np.isfinite(row['loss']):
        checkpointer.close()
        raise NonFiniteLossError(
          f'the loss is {row["loss"]} between steps {first} and {done}; the checkpoint before '
          'them is kept. Lower config.train.learning_rate or inspect the data.'
        )
      seconds = time.perf_counter() - since
      row |= {'data_wait': waited / seconds, 'seconds_per_step': seconds / len(window)}
      row['patches_per_second'] = config.train.batch_size * len(window) / seconds
      log.write(done, row)
      bar.set_postfix(loss=f'{row["loss"]:.3f}')
      window, waited, since = [], 0.0, time.perf_counter()
    if save:
      checkpointer.save(done, train_state, {'step': done, 'seed': config.seed})

  # ---- finish ------------------------------------------------------------------------------------
  trace.close()
  checkpointer.close()
  report.training_curves(workdir / 'pictures' / 'training.png', log.rows())
  log.close()


class MetricsLog:
  """`metrics.jsonl`, one JSON object a log step, and the same numbers for TensorBoard.

  Lines beyond `start`, which a killed run wrote after its last checkpoint, are removed.
  """

  def __init__(self, workdir: epath.Path, start: int):
    self._path = workdir / 'metrics.jsonl'
    kept = [row for row in self.rows() if row['step'] <= start]
    self._path.write_text(''.join(json.dumps(row) + '\n' for row in kept))
    self._tensorboard = metric_writers.SummaryWriter(str(workdir / 'tensorboard'))

  def rows(self) -> list[dict[str, float]]:
    """All complete lines of the file."""
    if not self._path.exists():
      return []
    rows = []
    for line in self._path.read_text().splitlines():
      try:
        rows.append(json.loads(line))
      except json.JSONDecodeError:  # the line a killed run was writing
        break
    return rows

  def write(self, step: int, row: dict[str, float]) -> None:
    """Appends one line."""
    with self._path.open('a') as file:
      file.write(json.dumps({'step': step, **row}) + '\n')
    self._tensorboard.write_scalars(step, row)

  def close(self) -> None:
    """Flushes the TensorBoard events."""
    self._tensorboard.flush()
    self._tensorboard.close()
