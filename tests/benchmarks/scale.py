"""What preparation and training cost at thousands of scans: made-up indices, measured units.

PYTHONPATH=. python tests/benchmarks/scale.py [--scans 3410 34100]

An index of as many scans as asked for is made up (bricks of 64^3 at 1.5 mm, three label codes in
each) and opened as training opens it. Comparing scans is timed on made-up sketches of as many.
"""

import argparse
import json
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

from input_pipeline.batches.sampler import PatchSampler
from input_pipeline.bricks import reader, records, voxel_index
from input_pipeline.dedupe import fingerprint, sketches
from mome_jax.configs import paper_unet

_SHAPE = (6, 5, 5)  # bricks of a scan: 384 x 320 x 320 voxels, 576 x 480 x 480 mm
_MB_A_SCAN = 75.0  # of bricks, compressed: OpenKBP at 1.5 mm, for the larger field of view
_SHARD_MB = 128
_CONFIG = ml_collections.ConfigDict(
  {
    'patch': (96, 96, 96), 'windows': ((-175.0, 250.0),), 'foreground': 0.67,
    'balance': 'sources', 'cache_mb': 1024, 'augment': {'enabled': False},
  }
)  # fmt: skip


def write_index(path: pathlib.Path, scans: int) -> int:
  """Makes up the index of so many scans; the number of bricks."""
  rng = np.random.default_rng(0)
  cells = np.stack(np.unravel_index(np.arange(np.prod(_SHAPE)), _SHAPE), 1).astype(np.int32) * 64
  count = scans * len(cells)
  codes = rng.integers(1, 33, (count, 3)).astype(np.uint8)
  voxels: dict[str, Any] = dict(
    zip(
      voxel_index.NAMES,
      (
        np.repeat(np.arange(count, dtype=np.int32), 3),
        np.sort(codes, 1).reshape(-1),
        rng.integers(1, 60000, 3 * count).astype(np.int32),
      ),
      strict=True,
    )
  )
  supervised = tuple(paper_unet.get_config().classes)
  cases = []
  for number in range(scans):
    info = records.CaseInfo(
      f'case_{number:06d}', f'source_{number % 16}', supervised, {}, tuple(64 * n for n in _SHAPE),
      (0.0, 0.0, 0.0), (0.8, 0.8, 1.5), '0' * 24,
    )  # fmt: skip
    cases.append(json.dumps({name: records.plain(value) for name, value in vars(info).items()}))
  np.savez_compressed(
    path, brick=np.int32(64), spacing=np.array((1.5,) * 3), cases=np.array(cases),
    case=np.repeat(np.arange(scans, dtype=np.int32), len(cells)),
    position=np.tile(cells, (scans, 1)), **voxels,
  )  # fmt: skip
  return count


class Store(reader.BrickStore):
  """A store of an index alone."""

  def __init__(self, folder: pathlib.Path):
    before, reader.data_source = reader.data_source, lambda *_, **__: []
    try:
      super().__init__(folder, 'made_up')
    finally:
      reader.data_source = before


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
  """CPU time of a call, and what it gives."""
  start = time.process_time()
  result = call()
  return time.process_time() - start, result


def memory_gb() -> float:
  """Highest resident memory of this process so far."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def comparing(scans: int, sample: int = 40) -> tuple[float, float]:
  """CPU seconds of a look at all pairs of so many sketches, and GB that they take."""
  rng = np.random.default_rng(0)
  known = [rng.random((int(n), sketches.CHANNELS), np.float32)
           for n in rng.integers(40, 120, min(scans, 4000))]  # fmt: skip
  search = sketches.Sketches(known)
  spent, _ = seconds(lambda: [search.near(0) for _ in range(sample)])
  pair = spent / sample / (len(known) - 1)
  size = sum(one.nbytes // 2 for one in known) + search._table.nbytes
  return pair * scans * (scans - 1) / 2, size / len(known) * scans / 1e9


def aligning() -> float:
  """CPU seconds of one comparison voxel by voxel that is decided at a quarter of the resolution."""
  rng = np.random.default_rng(0)
  make = lambda: fingerprint.Fingerprint(
    rng.normal(0, 50, (70, 50, 70)).astype(np.float32),
    np.ones((70, 50, 70), bool),
    np.ones((70, 3)),
  )
  a, b = make(), make()
  return seconds(lambda: [fingerprint.correlation(a, b) for _ in range(3)])[0] / 3


def measure(scans: int) -> dict[str, str]:
  """The column of a number of scans."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, records.INDEX)
    bricks = write_index(path, scans)
    base = memory_gb()
    opened, store = seconds(lambda: Store(pathlib.Path(folder)))
    digest, _ = seconds(store.digest)
    classes = tuple(paper_unet.get_config().classes)
    looked, sampler = seconds(lambda: PatchSampler(_CONFIG, [store], classes))
    rng = np.random.default_rng(0)
    placed = seconds(lambda: [_draw(sampler, rng) for _ in range(200)])[0] / 200
    index = path.stat().st_size / 1e6
    extra = memory_gb() - base
  compared, table = comparing(scans)
  pairs = scans * (scans - 1) / 2
  return {
    'bricks': f'{bricks:,}',
    'shards of 128 MB': f'{scans * _MB_A_SCAN / _SHARD_MB:,.0f}',
    'index on disk, MB': f'{index:,.0f}',
    'opening it, s': f'{opened:.1f}',
    'digest, at each start, s': f'{digest:.1f}',
    'sampler, at each start, s': f'{looked:.1f}',
    'memory of index and sampler, GB a process': f'{extra:.1f}',
    'drawing a place, ms': f'{1e3 * placed:.2f}',
    'bricks in a cache of 1 GB, %': f'{100 * min(1, 1024 * 2**20 / (64**3 * 3) / bricks):.2f}',
    'dedupe: pairs': f'{pairs:,.0f}',
    'dedupe: look at all pairs, hours of a core': f'{compared / 3600:,.2f}',
    'dedupe: memory, GB': f'{table:.1f}',
    'dedupe: fingerprints in a file, GB': f'{scans * 0.25e-3:.1f}',
    'dedupe: aligning 25 % of pairs, hours of a core': f'{pairs * 0.25 * aligning() / 3600:,.0f}',
  }


def _draw(sampler: PatchSampler, rng: np.random.Generator) -> None:
  """A dataset, a class, a case and a brick, without reading it."""
  name, _ = sampler._dataset(rng)
  _, having = sampler._datasets[name]
  k, cases = having[rng.integers(len(having))]
  numbers, odds = cases[rng.integers(len(cases))].voxels[k]
  rng.choice(numbers, p=odds)


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--scans', type=int, nargs='+', default=[3410, 34100])
  columns = {scans: measure(scans) for scans in parser.parse_args().scans}
  print('| | ' + ' | '.join(f'{scans:,} scans' for scans in columns) + ' |')
  print('|:--|' + '--:|' * len(columns))
  for row in next(iter(columns.values())):
    print(f'| {row} | ' + ' | '.join(column[row] for column in columns.values()) + ' |')


if __name__ == '__main__':
  main()
