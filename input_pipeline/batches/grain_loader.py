"""Batches made by processes, which Grain keeps in order; no TensorFlow anywhere.

Every process draws each so-manieth example by itself, with its part of the cache, and hands the
arrays over in shared memory. No interpreter waits for the lock of another.
"""

import dataclasses
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import connection, process

import numpy as np

from input_pipeline.batches import spec
from input_pipeline.batches.background import Batch, Batches
from input_pipeline.batches.sampler import PatchSampler, PipelineError

_READ = 'voxels_read'  # beside the arrays of an example: what was decoded for it
_SHARED = '/dev/shm'


@dataclasses.dataclass
class _Draw:
  """Makes the example at a position; each process has a copy of it."""

  sampler: PatchSampler
  number: Callable[[int], int]
  seed: int

  def __call__(self, position: int) -> Batch:
    before = self.sampler.voxels_read
    example = self.sampler.sample(self.number(position), self.seed)
    return {**example, _READ: np.array(self.sampler.voxels_read - before, np.int64)}


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
    workers: processes.
  """
  import grain
  from absl import flags

  if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, of programs that have none too
    flags.FLAGS.mark_as_parsed()
  ahead = -(-2 * rows // workers)  # of each process, so that two batches are
  _check_shared_memory(sampler, workers * (ahead + 1))
  draw = _Draw(sampler.part(workers), number, seed)
  examples = grain.MapDataset.range(first, np.iinfo(np.int64).max).map(draw)
  dataset = examples.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
  dataset = dataset.mp_prefetch(
    grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead),
    worker_init_fn=_begin,
  )
  iterator = iter(dataset.batch(rows, drop_remainder=True))
  total = [0]
  return Batches(
    _counted(iterator, total, workers), close=iterator.close, voxels_read=lambda: total[0]
  )


def _counted(iterator: Iterator[Batch], total: list[int], workers: int) -> Iterator[Batch]:
  """The batches without what was decoded for them, which is added to `total`."""
  try:
    for batch in iterator:
      total[0] += int(batch.pop(_READ).sum())
      yield batch
  except RuntimeError as error:
    if 'terminated unexpectedly' not in str(error):
      raise
    raise PipelineError(
      f'a process that makes patches was ended from outside ({error}); where memory ran out, '
      f'lower data.num_parallel (here {workers}) or data.cache_mb'
    ) from error


def _check_shared_memory(sampler: PatchSampler, examples: int) -> None:
  """Refuses what shared memory cannot hold: a process that writes beyond it is killed.

  Grain does not always notice that, and then the run waits for ever. Containers have 64 MB of it
  unless told otherwise.
  """
  size = sum(
    math.prod(shape) * np.dtype(spec.BATCH[name].dtype).itemsize
    for name, shape in sampler.shapes.items()
  )
  needed = 2 * size * examples  # those on their way, and those being made
  if os.path.isdir(_SHARED) and (free := shutil.disk_usage(_SHARED).free) < needed:
    raise PipelineError(
      f'{_SHARED}: {free // 2**20} MiB are free, and the processes of data.loader=grain hand over '
      f'{math.ceil(needed / 2**20)} MiB of patches there; give the container more (docker run '
      '--shm-size=8g), or lower data.num_parallel'
    )


def _begin(worker: int, workers: int) -> None:
  """Prepares a process that makes examples."""
  del worker, workers
  from threadpoolctl import threadpool_limits

  threadpool_limits(1, user_api='blas')  # as many processes as processors are at work
  # Launchers signal all processes at once; the one that trains decides when these end.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  parent = process.parent_process()
  assert parent is not None

  def follow():
    connection.wait([parent.sentinel])
    os._exit(1)  # killed, it could not tell

  threading.Thread(target=follow, daemon=True).start()
