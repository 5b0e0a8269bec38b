"""Blending, interpolation and decision on the device, against those of the host."""

import jax.numpy as jnp
import numpy as np
import pytest

from mome_jax.inference.segmenter import Segmenter, Settings
from mome_jax.inference.sliding_window import NonFiniteLogitsError, Tiling
from mome_jax.inference.stage_clock import Clock

pytestmark = pytest.mark.usefixtures('soon')

NAMES = ('liver', 'liver tumor', 'spleen', 'pancreas', 'pancreas tumor')
FREE = ('cyst', 'shunt')
WINDOW = (16, 12, 20)
RNG = np.random.default_rng(0)
PHASES = RNG.uniform(0, 6, len(NAMES) + len(FREE)).astype(np.float32)
RAMP = np.linspace(-0.5, 0.5, np.prod(WINDOW)).reshape(WINDOW).astype(np.float32)


def parts(windows):
  """Logits that differ in every window and overlap; four classes a part, the last one empty."""
  x = jnp.asarray(windows[..., 0])[:, None]
  phases = np.append(PHASES, 0).reshape(2, 4, 1, 1, 1)
  return (jnp.sin(9 * x + of) + RAMP + 0.2 for of in phases)


def whole(windows):
  """The same in one part, of the host."""
  return np.concatenate([np.asarray(part) for part in parts(windows)], 1)[:, : len(PHASES)]


def segment(image, spacing, predict=parts, *, on_device, batch_size=2):
  """Masks, logits of every class, and what was counted."""
  settings = Settings((2.0, 2.0, 2.0), ((0, 100),), Tiling(WINDOW, 0.5, batch_size))
  run = Segmenter(predict, NAMES, settings, free=FREE, on_device=on_device)
  clock, logits, sure = Clock(), np.full((len(PHASES), *image.shape), np.nan), []

  def on_slab(slab):
    for k in range(len(PHASES)):
      logits[k][slab.planes] = slab.logits(k)
    sure.append([slab.sure(k) for k in range(len(PHASES))])

  return run(image, spacing, on_slab, clock=clock), logits, np.sum(sure, 0), clock.counts()


def scan(shape, air=0):
  """Waves of warm tissue, after some planes of air."""
  grid = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing='ij')
  image = 50 + 40 * np.sin(grid[0] + 2 * grid[1]) * np.cos(grid[2])
  image[:air] = -1000
  return image.astype(np.float32)


# Several windows each way, finer and coarser than the network's grid; smaller than a window; a scan
# that begins with windows of air.
CASES = [((70, 31, 40), (1.3, 1.7, 1.1), 0), ((20, 9, 11), (1.5, 1.0, 2.9), 0),
         ((90, 20, 24), (1.6, 2.0, 2.2), 60), ((23, 40, 30), (2.7, 1.0, 1.0), 0)]  # fmt: skip


@pytest.mark.parametrize(('shape', 'spacing', 'air'), CASES)
def test_it_decides_as_the_host_does(shape, spacing, air):
  image = scan(shape, air)
  host, logits, sure, _ = segment(image, spacing, on_device=False)
  device, logits_device, sure_device, _ = segment(image, spacing, on_device=True)
  np.testing.assert_allclose(logits_device, logits, atol=2e-5)
  # A tie is a voxel where two logits, or one and the threshold, differ by rounding.
  ranked = np.sort(np.concatenate([logits, np.zeros((1, *shape))]), 0)
  tie = ((np.diff(ranked, axis=0) < 4e-5) & (ranked[1:] > -4e-5)).any(0)
  assert tie.mean() < 1e-2
  assert (host.winner > 0).mean() > 0.2 and len(np.unique(host.winner)) > 3
  np.testing.assert_array_equal(device.winner[~tie], host.winner[~tie])
  np.testing.assert_array_equal(device.over[~tie], host.over[~tie])
  assert host.over.any() and device.winner.dtype == host.winner.dtype
  for name in FREE:
    np.testing.assert_array_equal(device.free[name][...][~tie], host.free[name][...][~tie])
    assert host.free[name][...].any()
  np.testing.assert_allclose(sure_device, sure, atol=tie.sum())


@pytest.mark.parametrize('on_device', [False, True])
def test_equal_logits_go_to_the_lower_class(on_device):
  """Though tumours, of which the pancreas has one, are looked at first."""
  logits = np.full(8, -5, np.float32)
  logits[[NAMES.index('spleen'), NAMES.index('pancreas tumor')]] = 1

  def predict(windows):
    shape = len(windows), 4, *WINDOW
    return (jnp.broadcast_to(part[:, None, None, None], shape) for part in logits.reshape(2, 4))

  masks, *_ = segment(scan((20, 12, 20)), (2.0, 2.0, 2.0), predict, on_device=on_device)
  np.testing.assert_array_equal(masks.winner, 1 + NAMES.index('spleen'))


def test_only_labels_come_to_the_host():
  """Not the logits of windows, nor maps of classes."""
  image, spacing = scan((64, 64, 64)), (1.0, 1.0, 1.0)
  settings = Settings((2.0, 2.0, 2.0), ((0, 100),), Tiling(WINDOW, 0.5, 2))
  counts = {}
  for on_device in (False, True):
    clock = Clock()
    Segmenter(parts, NAMES, settings, free=FREE, on_device=on_device)(image, spacing, clock=clock)
    counts[on_device] = clock.counts()
  # Windows start every 8, 6 and 10 voxels of the grid of 32 x 32 x 32 voxels.
  windows = 3 * 5 * 3
  assert counts[False]['windows'] == counts[True]['windows'] == windows
  batches = 3 * 8  # of two windows, plane by plane
  voxels = 2 * np.prod(WINDOW)
  assert counts[False]['bytes_to_device'] == 4 * batches * voxels
  assert counts[False]['bytes_from_device'] == 4 * batches * voxels * 8
  # A byte for the winner, one for containers, a bit for each free mask; the planes of the last call
  # of each of the three planes of windows are filled up.
  travelled = counts[True]['bytes_from_device']
  labels = 64 * 64 * 64 * (1 + 1 + len(FREE) / 8)
  assert labels < travelled < 3 * labels + 1000 < counts[False]['bytes_from_device'] / 2


def test_a_larger_scan_needs_no_further_program():
  """Patients have more slices, along the last axis, and other pixels: programs are shared."""
  first = segment(scan((50, 33, 41)), (1.3, 1.1, 1.7), on_device=True)[-1]
  larger = segment(scan((81, 40, 59)), (1.2, 1.05, 1.7), on_device=True)[-1]
  assert first['compilations'] > 0 and larger['compilations'] == 0
  assert larger['windows'] > first['windows']


def test_several_passes_are_averaged():
  image, spacing = scan((30, 20, 24)), (2.0, 2.0, 2.0)

  def twice(windows):
    yield from parts(windows)
    yield from (part + 1 for part in parts(windows))

  _, once, *_ = segment(image, spacing, on_device=True)
  _, mean, *_ = segment(image, spacing, twice, on_device=True)
  np.testing.assert_allclose(mean, once + 0.5, atol=1e-5)


def test_logits_of_the_host_are_taken_too():
  image, spacing = scan((30, 20, 24)), (2.0, 2.0, 2.0)
  by_parts, *_ = segment(image, spacing, on_device=True)
  at_once, *_ = segment(image, spacing, whole, on_device=True)
  np.testing.assert_array_equal(at_once.winner, by_parts.winner)


def test_what_is_not_finite_is_refused():
  with pytest.raises(NonFiniteLogitsError):
    segment(scan((20, 20, 24)), (2.0, 2.0, 2.0), lambda x: whole(x) * np.nan, on_device=True)
