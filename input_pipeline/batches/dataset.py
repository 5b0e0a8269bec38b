"""Training batches of one host, made in the background from what `sampler` draws."""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from input_pipeline import bricks, control_groups
from input_pipeline.batches import grain_loader, tf_loader
from input_pipeline.batches.background import Batches
from input_pipeline.batches.sampler import PatchSampler, PipelineError
from input_pipeline.errors import suggest

AUTO = 'auto'
# What makes the batches, and the package it needs; AUTO is the first that is installed.
_MAKERS: dict[str, tuple[Callable[..., Batches], str]] = {
  'tf.data': (tf_loader.batches, 'tensorflow'),
  'grain': (grain_loader.batches, 'grain'),
}
LOADERS = (*_MAKERS, AUTO)
# Beyond it a host makes patches faster than eight accelerators take them, and only memory grows.
_MOST_WORKERS = 32


def make_dataset(
  config: Any,
  stores: Sequence[bricks.Store],
  classes: Sequence[str],
  *,
  seed: int,
  start_step: int = 0,
  batch_size: int,
  host: int = 0,
  num_hosts: int = 1,
) -> Batches:
  """Endless batches of one host, made in the background.

  Its many options are all that one batch depends on: nothing is kept from an earlier one. Which
  loader makes them, and how many at once, changes no number.

  Args:
    config: of `PatchSampler`, and
      loader: one of LOADERS, by default AUTO, see `choose_loader`;
      num_parallel: patches made at the same time; 0: as many as `control_groups.usable_cpus`, at
        most 32.
    stores: the prepared sources.
    classes: K class names.
    seed: of the run.
    start_step: number of the first batch.
    batch_size: B over all hosts.
    host: this host yields rows [host * B / num_hosts, (host + 1) * B / num_hosts).
    num_hosts: how many share the batch.

  Returns:
    Iterator over what `PatchSampler.sample` returns, with a leading axis of B / num_hosts.

  Raises:
    PipelineError: as `PatchSampler`, if the hosts cannot share the batch evenly, or the loader is
      not installed.
  """
  if batch_size % num_hosts:
    raise PipelineError(f'batch size {batch_size} cannot be shared by {num_hosts} hosts evenly')
  make, _ = _MAKERS[choose_loader(getattr(config, 'loader', AUTO))]
  sampler = PatchSampler(config, stores, classes)
  rows = batch_size // num_hosts
  number = functools.partial(_example_number, rows=rows, batch_size=batch_size, host=host)
  workers = config.num_parallel or min(control_groups.usable_cpus(), _MOST_WORKERS)
  return make(sampler, number, seed=seed, first=start_step * rows, rows=rows, workers=workers)


def _example_number(local: int, *, rows: int, batch_size: int, host: int) -> int:
  """Global number of the example that is number `local` of this host."""
  step, row = divmod(local, rows)
  return step * batch_size + host * rows + row


def choose_loader(name: str) -> str:
  """What makes the batches: `tf.data` by threads of this process, `grain` by processes.

  Args:
    name: one of LOADERS; AUTO is tf.data where TensorFlow is installed, or else grain.

  Raises:
    PipelineError: if there is no such loader, or what it needs is not installed.
  """
  if name not in LOADERS:
    raise PipelineError(f'data.loader is {name!r}; {suggest(name, LOADERS)}')
  installed = installed_loaders()
  if not installed:
    packages = ' or '.join(package for _, package in _MAKERS.values())
    raise PipelineError(f'nothing that makes batches is installed; pip install {packages}')
  if name == AUTO:
    return installed[0]
  if name not in installed:
    package = _MAKERS[name][1]
    raise PipelineError(
      f'data.loader is {name!r}, and {package} is not installed; pip install {package}, or set '
      f'--config.data.loader={installed[0]}, which makes the same batches'
    )
  return name


def installed_loaders() -> list[str]:
  """Those whose package is installed."""
  return [name for name, (_, package) in _MAKERS.items() if importlib.util.find_spec(package)]
