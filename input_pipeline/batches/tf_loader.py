"""Batches made by threads of this process, which tf.data keeps in order."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from input_pipeline import bricks
from input_pipeline.batches import spec
from input_pipeline.batches.background import Batch, Batches
from input_pipeline.batches.sampler import PatchSampler


def batches(
  sampler: PatchSampler,
  number: Callable[[int], int],
  *,
  seed: int,
  first: int,
  rows: int,
  workers: int,
) -> Batches:
  """Endless batches of `rows` examples.

  Args:
    sampler: draws the examples.
    number: position of an example in this host's order -> its global number.
    seed: of the run.
    first: position of the first example.
    rows: examples of a batch.
    workers: examples made at the same time.
  """
  tf = _import_tensorflow()
  from threadpoolctl import threadpool_limits

  shapes = sampler.shapes
  failures: list[Exception] = []

  def in_order(position):
    try:
      example = sampler.sample(number(int(position)), seed)
    except Exception as error:
      failures.append(error)
      raise
    return [example[name] for name in shapes]

  def to_example(position):
    types = [tf.as_dtype(spec.BATCH[name].dtype) for name in shapes]
    tensors = tf.numpy_function(in_order, [position], types)
    return {
      name: tf.ensure_shape(tensor, shape)
      for (name, shape), tensor in zip(shapes.items(), tensors, strict=True)
    }

  dataset = tf.data.Dataset.range(first, np.iinfo(np.int64).max)
  dataset = dataset.map(to_example, num_parallel_calls=workers, deterministic=True)
  dataset = dataset.batch(rows, drop_remainder=True).prefetch(2)
  # Each example is one thread's work: threads of BLAS on top of them would only wait for a core.
  limits = threadpool_limits(1, user_api='blas')
  return Batches(
    _raising(dataset.as_numpy_iterator(), failures),
    close=limits.restore_original_limits,
    voxels_read=lambda: sampler.voxels_read,
  )


def _raising(iterator: Iterator[Batch], failures: list[Exception]) -> Iterator[Batch]:
  """The batches; where an example failed, the reason itself and not what TensorFlow makes of it."""
  try:
    yield from iterator
  except Exception:
    if failures:
      raise failures[0] from None
    raise


def _import_tensorflow() -> Any:
  """TensorFlow, quiet and off the accelerators."""
  bricks.import_tfds()
  import tensorflow as tf

  tf.config.set_visible_devices([], 'GPU')
  return tf
