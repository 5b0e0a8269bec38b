"""The training loop, to be read from top to bottom."""

import contextlib
import dataclasses
import math
from collections.abc import Generator
from typing import Any

import jax
import ml_collections
import tqdm
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh

from input_pipeline import progress
from input_pipeline.batches import dataset
from mome_jax import checkpoint
from mome_jax.checkpoint import training_cases
from mome_jax.errors import writing
from mome_jax.models import build_model
from mome_jax.pictures import router_pictures, training_curves
from mome_jax.plausibility import learn, record
from mome_jax.runtime import compilation
from mome_jax.training import (
  multihost,
  parameter_groups,
  prefetch,
  profile,
  sharding,
  state,
  steps,
)
from mome_jax.training.forecast import Forecast
from mome_jax.training.log import MetricsLog
from mome_jax.training.log_window import LogWindow, NonFiniteLossError
from mome_jax.training.monitor import Monitor
from mome_jax.training.optimizer import make_optimizer
from mome_jax.training.sole_run import sole_run
from mome_jax.training.start import Start, Task, find_start, read_task
from mome_jax.training.unlearnable import outdated, unlearnable
from mome_jax.training.validation import Validation

_CURVES = 'pictures/training.png'
Feed = Generator[tuple[dict[str, jax.Array], Any], None, None]  # batch and prompts of a step


def train(config: ml_collections.ConfigDict, workdir: epath.Path) -> ml_collections.ConfigDict:
  """Trains until `config.train.steps`, from the newest checkpoint in `workdir` if there is one.

  A run goes on with the config it was started with, but for `checkpoint.MAY_CHANGE`. Leaves a
  workdir that `checkpoint.load_model` reads, with `metrics.jsonl`, TensorBoard events,
  `pictures/training.png`, of each validation `pictures/validation_STEP.png`, and the record of
  `plausibility`; with banks of sparse experts also `experts.jsonl` and
  `pictures/experts_SCALE.png`.

  Args:
    config: see `configs/base.py`; it stays as it is.
    workdir: created where missing.

  Returns:
    The config as it is saved: with the classes that the sources bring along.

  Raises:
    TextVectorError: if the text is frozen and its vectors are missing.
    CheckpointError: if `workdir` holds a run that learns something else, cannot be read, or
      another run is in it.
    ValidationError: if something is to be chosen by scans set aside, and there are none.
    NonFiniteLossError: if the loss is NaN or infinite; the last good checkpoint stays.
    Preempted: if the system or Control-C asked the run to end; it has saved.
  """
  task = read_task(config, workdir)
  with sole_run(workdir):
    mesh = sharding.make_mesh(task.config.mesh)
    with jax.set_mesh(mesh):  # what the process does next, such as scoring, has another mesh
      _train(task, workdir, mesh)
  return task.config


def _train(task: Task, workdir: epath.Path, mesh: Mesh) -> None:
  """Sets a run up, runs the steps that are left and closes it."""
  config = task.config

  # ---- model, state ------------------------------------------------------------------------------
  sharding.check_batch(mesh, config)
  model = build_model(config.model)
  optimizer = make_optimizer(config.train)
  fresh, abstract = state.init_state(config, mesh, model, task.text.encoder, optimizer)

  # ---- begin or resume ---------------------------------------------------------------------------
  checkpointer = checkpoint.Checkpointer(workdir, keep=config.train.keep_checkpoints)
  start = find_start(task, workdir, checkpointer, fresh, abstract)
  del fresh
  validation = None
  if task.held_out is not None and config.validation.every:
    validation = Validation(config, mesh, model, task.text, task.held_out)
  monitor = Monitor(config, task.held_out, validation, start.choice, workdir / 'pictures')
  if monitor.is_unmeasured(start.step):
    _make_up(monitor, start, workdir, checkpointer)
  if start.step >= config.train.steps or monitor.is_exhausted:
    checkpointer.close()
    if multihost.is_lead():
      print(f'{workdir} is trained: {_done(start.step, config, monitor)}', flush=True)
      _describe_scoring(task, workdir)
      if not (workdir / _CURVES).exists():  # it ended after its last checkpoint
        log = MetricsLog(workdir, start.step)
        _summarise(task, workdir, log)
        log.close()
    return
  recorder = _Recorder(task, workdir, checkpointer, start, monitor)
  feed = _feed(task, mesh, start.step)
  table = task.template.code_table(config.classes)
  train_step = steps.jit_train_step(config, model, task.text.encoder, optimizer, abstract, table)
  if multihost.is_lead():
    init = config.init.checkpoint
    training_cases.note(workdir, task.stores, resumed=start.step > 0, init=init)

  _loop(task, start, train_step, feed, recorder)
  recorder.finish()


def _make_up(
  monitor: Monitor, start: Start, workdir: epath.Path, checkpointer: checkpoint.Checkpointer
) -> None:
  """Measures a checkpoint that was to be measured when the run was asked to end.

  Raises:
    Preempted: if several processes are asked to end again; one by itself is interrupted.
  """
  if multihost.is_lead():
    print(f'measuring step {start.step}, where the run was asked to end', flush=True)
  preemption = multihost.Preemption()  # not entered: there is nothing that is to be saved first
  values = monitor.measure(start.step, start.state.ema, preemption.requested)
  if values:
    if multihost.is_lead():
      row: dict[str, Any] = {**values}
      log = MetricsLog(workdir, start.step)
      log.write(start.step, row, vectors=False)
      log.close()
    choice = dataclasses.asdict(monitor.choice)
    checkpointer.rate(start.step, choice, monitor.score(start.step))
  if preemption.requested():
    checkpointer.close()
    raise preemption.ending(start.step)


def _loop(task: Task, start: Start, train_step: Any, feed: Feed, recorder: '_Recorder') -> None:
  """Runs the steps that are left."""
  config, train_state, first = task.config, start.state, start.step
  window = LogWindow(config.train.batch_size, config.train.skip_nonfinite)
  bar = progress.bar(
    range(first, config.train.steps),
    initial=first,
    total=config.train.steps,
    desc='compile',
    disable=not multihost.is_lead(),
  )
  say = bar.write if multihost.is_lead() else None
  forecast = Forecast(config, first, recorder.monitor.left(first), say)
  trace = recorder.trace(first + 2)
  with (
    multihost.Preemption() as preemption,
    contextlib.closing(feed),
    contextlib.closing(trace),
  ):
    for step in bar:
      trace.before(step, train_state)
      batch, prompts = window.next(feed)
      if step == first:  # compilation is in no step's time
        forecast.announce()
        train_step = _compile(config, train_step, (train_state, batch, prompts), bar)
        window.restart()
      train_state, metrics = train_step(train_state, batch, prompts)
      window.add(metrics)

      done = step + 1
      forecast.step(done)
      last = done == config.train.steps
      preempted = preemption.requested()
      validated = recorder.monitor.is_due(done)
      save = last or preempted or done % config.train.checkpoint_every == 0
      if done % config.train.log_every == 0 or save or validated:
        row = recorder.row(done, window, train_state.params)
        if validated and not window.ends_skipped:  # see below
          row |= recorder.monitor.measure(done, train_state.ema, preemption.requested)
          preempted = preemption.requested()
          last = last or recorder.monitor.is_exhausted
          save = save or last or preempted or recorder.monitor.is_best(done)
        recorder.write(done, row, vectors=save)
        forecast.row(row)
        bar.set_postfix(_shown(row))
        window.restart()
      # In a row of steps left out, the parameters may be those that made them so: the checkpoints
      # before it would be lost to copies of these.
      if save and (last or preempted or not window.ends_skipped):
        recorder.save(done, train_state)
      if last or preempted:
        break
    if preempted or preemption.requested():  # in the last step, or while it was validated
      recorder.close()
      raise preemption.ending(done)
  bar.close()
  if done < config.train.steps and multihost.is_lead():
    print(f'ended early: {_done(done, config, recorder.monitor)}', flush=True)


def _compile(
  config: ml_collections.ConfigDict, train_step: Any, arguments: tuple, bar: tqdm.tqdm
) -> Any:
  """The compiled train step; says beforehand how long that took the last time."""
  with multihost.nothing_to_lose():
    told = compilation.told('the train step', compilation.about(config, training=True), bar.write)
    with told if multihost.is_lead() else contextlib.nullcontext():
      compiled = train_step.lower(*arguments).compile()
  bar.unpause()  # its rate is that of the steps
  bar.set_description('train')
  return compiled


def _shown(row: dict[str, Any]) -> dict[str, str]:
  dice = row.get('validation/dice')
  shown = {'loss': f'{row.get("loss", math.nan):.3f}'}
  return shown if dice is None else shown | {'validation': f'{100 * dice:.1f} %'}


def _done(step: int, config: ml_collections.ConfigDict, monitor: Monitor) -> str:
  text = f'{step} of {config.train.steps} steps are done'
  if step < config.train.steps:
    choice = monitor.choice
    text += (
      f', the best at {choice.best_step}; {choice.waited} validations brought nothing better '
      f'(validation.patience={config.validation.patience})'
    )
  return text


def _feed(task: Task, mesh: Mesh, start: int) -> Feed:
  """Batch and prompts of every step from `start` on, on the devices; two are made ahead."""
  config = task.config
  batches = dataset.make_dataset(
    config.data,
    task.stores,
    tuple(config.classes),
    seed=config.seed,
    start_step=start,
    batch_size=config.train.batch_size,
    host=jax.process_index(),
    num_hosts=jax.process_count(),
  )

  def on_devices():
    for step, batch in zip(range(start, config.train.steps), batches, strict=False):
      prompts = task.text.batch(seed=config.seed, step=step)
      placed = sharding.shard_batch(mesh, batch, spatial=config.mesh.spatial)
      yield placed, sharding.replicate(mesh, prompts)

  return prefetch.prefetch(on_devices(), ahead=2)


class _Recorder:
  """Log, checkpoints and pictures of a run; one of its processes, the lead, writes the files."""

  def __init__(
    self,
    task: Task,
    workdir: epath.Path,
    checkpointer: checkpoint.Checkpointer,
    start: Start,
    monitor: Monitor,
  ):
    self.monitor = monitor
    self._task, self._workdir, self._checkpointer = task, workdir, checkpointer
    self._origin = start.params
    where = start.state.step.sharding
    self._distances = jax.jit(parameter_groups.distances, out_shardings=where)
    self._described = False
    self._log = None
    if multihost.is_lead():
      if (workdir / _CURVES).exists():  # of fewer steps; they mark the end of a run
        (workdir / _CURVES).unlink()
      self._log = MetricsLog(workdir, start.step)
      _print_start(task, workdir, start)
    monitor.announce()

  def trace(self, first: int) -> profile.Trace:
    """The profile that the config asks for, from step `first` on."""
    count = self._task.config.profile if self._log else 0
    return profile.Trace(self._workdir / 'profile', first=first, steps=count)

  def row(self, step: int, window: LogWindow, params: Any) -> dict[str, Any]:
    """The row of a step, with how far the parameters have moved."""
    try:
      row = window.row(step)
    except NonFiniteLossError:
      self.close()
      raise
    if self._origin is not None:
      row |= jax.device_get(self._distances(self._origin, params))
    return row

  def write(self, step: int, row: dict[str, Any], *, vectors: bool) -> None:
    """Writes the row of a step into the log."""
    if self._log:
      self._log.write(step, row, vectors=vectors)
      if 'skipped' in row:
        print(
          f'{row["skipped"]} steps up to step {step} were left out: NaN or infinite', flush=True
        )

  def save(self, step: int, train_state: state.TrainState) -> None:
    """Starts writing a checkpoint.

    With the first one also what describes the model: until then, the steps of another start are
    described.
    """
    task = self._task
    if self._log and not self._described:
      checkpoint.save_description(
        self._workdir, task.config, tokenizer=task.tokenizer, vectors=task.text.vectors
      )
      self._described = True
    position = {
      'step': step,
      'seed': task.config.seed,
      'data': task.digests,
      'validation': dataclasses.asdict(self.monitor.choice),
    }
    self._checkpointer.save(step, train_state, position, self.monitor.score(step))

  def close(self) -> None:
    """Waits until the checkpoints are written."""
    self._checkpointer.close()

  def finish(self) -> None:
    """Closes log and checkpoints, and sums up."""
    self.close()
    self.monitor.tell()
    if self._log:
      _summarise(self._task, self._workdir, self._log)
      self._log.close()


def _summarise(task: Task, workdir: epath.Path, log: MetricsLog) -> None:
  """Writes what the classes look like, and draws the log; the curves last, as a mark of the end."""
  config = task.config
  try:
    record.write(workdir, learn.learn_stores(task.stores, config.classes, config.data_dir))
  except record.RecordError as error:
    print(f'no {record.FILE}: {error}', flush=True)
  with writing(workdir / 'pictures'):
    for row in log.expert_rows()[-1:]:
      router_pictures.experts(workdir / 'pictures', row, config.classes)
  with writing(workdir / _CURVES):
    training_curves.training_curves(workdir / _CURVES, log.rows())


def _describe_scoring(task: Task, workdir: epath.Path) -> None:
  """Has a trained run described as it is scored now: prediction and export take the same."""
  config = checkpoint.for_evaluation(workdir, task.config)
  if changes := checkpoint.config_changes(workdir / checkpoint.CONFIG, config):
    print(f'changed since: {", ".join(changes.values())}', flush=True)
    checkpoint.save_description(
      workdir, config, tokenizer=task.tokenizer, vectors=task.text.vectors
    )


def _print_start(task: Task, workdir: epath.Path, start: Start) -> None:
  params, step = start.state.params, start.step
  if step == 0:
    overview = parameter_overview.get_parameter_overview(params, include_stats=False)
    with writing(workdir / 'parameters.txt'):
      (workdir / 'parameters.txt').write_text(overview + '\n', encoding='utf-8')
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  print(f'{count:,} parameters on {jax.device_count()} {jax.default_backend()} device(s)', end='; ')
  print(f'resuming {workdir} at step {step}' if step else f'training in {workdir}', flush=True)
  config = task.config
  lines = unlearnable(task.stores, config.classes)
  for line in (*lines, *outdated(task.stores, config.classes, config.data_dir)):
    print(line, flush=True)
  if config.train.warmup_steps > config.train.steps:
    print(
      f'CAUTION: train.warmup_steps={config.train.warmup_steps} exceeds the {config.train.steps} '
      'steps of the run: the learning rate never comes to its height',
      flush=True,
    )
  if step and task.changes:
    print(f'changed since: {", ".join(task.changes)}', flush=True)
