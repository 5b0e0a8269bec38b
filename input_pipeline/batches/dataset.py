"""Training batches of one host, made in the background by tf.data from what `sampler` draws."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from input_pipeline import bricks
from input_pipeline.batches import spec
from input_pipeline.batches.sampler import PatchSampler, PipelineError


def make_dataset(
  config: Any,
  stores: Sequence[bricks.BrickStore],
  classes: Sequence[str],
  *,
  seed: int,
  start_step: int = 0,
  batch_size: int,
  host: int = 0,
  num_hosts: int = 1,
) -> 'Batches':
  """Endless batches of one host, made in the background by tf.data.

  Its many options are all that one batch depends on: nothing is kept from an earlier one.

  Args:
    config: of `PatchSampler`, and num_parallel, the number of patches made at the same time.
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
    PipelineError: as `PatchSampler`, and if the hosts cannot share the batch evenly.
  """
  if batch_size % num_hosts:
    raise PipelineError(f'batch size {batch_size} cannot be shared by {num_hosts} hosts evenly')
  sampler = PatchSampler(config, stores, classes)
  rows = batch_size // num_hosts

  def draw(number: int) -> dict[str, np.ndarray]:
    step, row = divmod(number, rows)
    return sampler.sample(step * batch_size + host * rows + row, seed)

  return Batches(_in_background(config, sampler, draw, start_step * rows, rows), sampler)


def _in_background(
  config: Any,
  sampler: PatchSampler,
  draw: Callable[[int], dict[str, np.ndarray]],
  first: int,
  rows: int,
) -> Iterator[dict[str, np.ndarray]]:
  """Iterator over batches of `rows` examples draw(first), draw(first + 1), ..."""
  bricks.import_tfds()
  import tensorflow as tf

  shapes = spec.shapes(sampler.patch, windows=len(sampler.windows), classes=len(sampler.classes))

  def in_order(number):
    example = draw(int(number))
    return [example[name] for name in shapes]

  def to_example(number):
    types = [tf.as_dtype(spec.BATCH[name].dtype) for name in shapes]
    tensors = tf.numpy_function(in_order, [number], types)
    return {
      name: tf.ensure_shape(tensor, shape)
      for (name, shape), tensor in zip(shapes.items(), tensors, strict=True)
    }

  dataset = tf.data.Dataset.range(first, np.iinfo(np.int64).max)
  dataset = dataset.map(to_example, num_parallel_calls=config.num_parallel, deterministic=True)
  dataset = dataset.batch(rows, drop_remainder=True).prefetch(2)
  return dataset.as_numpy_iterator()


class Batches:
  """An iterator that ends its background threads before the interpreter goes.

  NOTE: threads of tf.data that wait for Python while it shuts down would hang the process for ever.
  """

  def __init__(self, iterator: Iterator[dict[str, np.ndarray]], sampler: PatchSampler):
    self._running = [iterator]
    self._sampler = sampler
    weakref.finalize(self, self._running.clear)  # runs at exit too

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    return next(self._running[0])

  @property
  def voxels_read(self) -> int:
    """Voxels of all bricks decoded so far, those of batches that are still to come among them."""
    return self._sampler.voxels_read
