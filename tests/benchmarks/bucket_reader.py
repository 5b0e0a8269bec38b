"""How fast bricks are read from a bucket that is far away, by how they are asked for.

PYTHONPATH=. python tests/benchmarks/bucket_reader.py --data=DIR --source=NAME

The prepared data are copied into a bucket on this machine (`tests/helpers/bucket.py`), which takes
--delay ms longer for each answer. A patch needs several bricks, given as random patches touch them:
they are read one after another, all by one request, and so by several patches at once. The other
table is what training gets of it: augmented patches, by loader and workers.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tests.helpers import bucket, bucket_gate

Read = Callable[[Sequence[int]], Any]


@dataclasses.dataclass(frozen=True)
class Rate:
  """Of reading: bricks a second, and requests to the bucket for each brick."""

  bricks: float
  requests: float


def copy(folder: pathlib.Path, source: str) -> None:
  """Copies a prepared source into the bucket."""
  from etils import epath

  for path in sorted((folder / source).rglob('*')):
    if path.is_file():
      target = epath.Path(f'gs://{bucket.NAME}/data') / path.relative_to(folder)
      target.write_bytes(path.read_bytes())


def patches(store: Any, edge: int, seed: int) -> Iterator[list[int]]:
  """Numbers of the bricks that a patch touches, of random places."""
  rng = np.random.default_rng(seed)
  records = {
    (case, *place): n
    for n, (case, place) in enumerate(zip(store.case, store.position.tolist(), strict=True))
  }
  while True:
    case = rng.integers(len(store.cases))
    shape = np.array(store.cases[case].shape)
    start = rng.integers(np.maximum(shape - edge, 0) + 1)
    end = np.minimum(start + edge, shape) - 1
    axes = [
      range(int(low) // store.brick, int(high) // store.brick + 1)
      for low, high in zip(start, end, strict=True)
    ]
    places = np.stack(np.meshgrid(*axes, indexing='ij'), -1).reshape(-1, 3) * store.brick
    touched = [records[key] for place in places.tolist() if (key := (case, *place)) in records]
    if touched:  # what holds no body was not prepared
      yield touched


def measure(
  read: Read, store: Any, gate: bucket_gate.Gate, *, edge: int, threads: int, seconds: float
) -> Rate:
  """Reads the bricks of patches for so long, by so many threads."""
  begun = time.monotonic()
  calls = sum(gate.calls.values())

  def one(seed: int) -> int:
    count = 0
    for numbers in patches(store, edge, seed):
      read(numbers)
      count += len(numbers)
      if time.monotonic() - begun > seconds:
        return count
    return count

  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    count = sum(pool.map(one, range(threads)))
  passed = time.monotonic() - begun
  return Rate(count / passed, (sum(gate.calls.values()) - calls) / count)


def table_of_reads(gate: bucket_gate.Gate, arguments: argparse.Namespace) -> None:
  """Prints how fast bricks are read."""
  from input_pipeline import bricks

  store = bricks.open_bricks(f'gs://{bucket.NAME}/data', arguments.source)
  store.read_all(range(len(store)))  # opens every shard
  one_by_one = lambda numbers: [store.read(number) for number in numbers]
  print('\n| bricks of a patch | patches at once | bricks/s | requests a brick |')
  print('|:--|--:|--:|--:|')
  for words, read in (('one by one', one_by_one), ('by one request', store.read_all)):
    for threads in arguments.parallel:
      rate = measure(
        read, store, gate, edge=arguments.patch, threads=threads, seconds=arguments.seconds
      )
      print(f'| {words} | {threads} | {rate.bricks:.1f} | {rate.requests:.2f} |', flush=True)


def main() -> int:
  """Prints both tables."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  add = parser.add_argument
  add('--data', type=pathlib.Path, required=True, help='prepared data on this machine')
  add('--source', required=True)
  add('--delay', type=float, default=50, help='ms of a request (50)')
  add('--patch', type=int, default=40, help='voxels along an edge (40)')
  add('--parallel', type=int, nargs='+', default=[1, 4, 16], help='patches read at once')
  add('--seconds', type=float, default=15, help='of each measurement (15)')
  arguments = parser.parse_args()
  with contextlib.ExitStack() as stack:
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    gate = stack.enter_context(bucket_gate.gate())
    environment = stack.enter_context(bucket.served(folder / 'log', gate))
    os.environ.update(environment)
    copy(arguments.data, arguments.source)
    gate.delay = arguments.delay / 1000
    print(f'{arguments.source}: {arguments.delay:g} ms a request, patches of {arguments.patch}^3')
    table_of_reads(gate, arguments)
    for cache in (0, 1024):
      print(flush=True)
      workers = [f'--parallel={number}' for number in arguments.parallel]
      subprocess.run(
        [sys.executable, '-m', 'input_pipeline.throughput', f'--data-dir=gs://{bucket.NAME}/data',
         f'--source={arguments.source}', f'--patch={arguments.patch}', f'--cache-mb={cache}',
         f'--seconds={arguments.seconds}', *workers],
        check=True, env=bucket.inherited(environment),
      )  # fmt: skip
  return 0


if __name__ == '__main__':
  sys.exit(main())
