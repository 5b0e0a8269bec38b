"""Meshes of real TPU topologies: which host holds what of a batch."""

import importlib.util
import json
import os
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from mome_jax.training import sharding

PROGRAM = """
import json, sys
from mome_jax.training import compile_ahead as ahead
from tests.mome_jax.training import test_sharding
describe = lambda topology, *mesh: test_sharding.describe(ahead.find_devices(topology)[0], *mesh)
print(json.dumps([describe(*asked) for asked in json.loads(sys.argv[1])]))
"""


def describe(devices, expert, spatial):
  """The hosts in each row of the mesh, and the parts of an image batch that each host holds."""
  options = {'data': -1, 'expert': expert, 'spatial': spatial}
  try:
    mesh = sharding.make_mesh(ConfigDict(options), devices)
  except sharding.MeshError as error:
    return {'error': str(error)}
  shape = (2 * len(devices), 96, 96, 96, 1)
  where = NamedSharding(mesh, sharding.batch_spec('image', spatial=spatial))
  parts = {}
  for device, index in where.devices_indices_map(shape).items():
    spans = [range(n)[s] for n, s in zip(shape, index, strict=True)]
    parts.setdefault(device.process_index, []).append([(s.start, s.stop) for s in spans[:2]])
  return {
    'shape': list(mesh.devices.shape),
    'devices': len(set(mesh.devices.flat)),
    'hosts': [sorted({d.process_index for d in row}) for row in mesh.devices],
    'parts': parts,
  }


MESHES = [('v5e:4x4', 4), ('v5e:4x4', 2), ('v5e:2x4', 4), ('v5p:2x2x4', 4), ('v5p:2x2x4', 2),
          ('v6e:4x4', 4), ('v6e:4x4', 2)]  # fmt: skip
LONG_ROWS = ('v5e:4x4', 8)


@pytest.fixture(scope='module')
def described():
  """Topology, expert and spatial -> `describe`; made in one other process: libtpu stays loaded."""
  if importlib.util.find_spec('libtpu') is None:
    pytest.skip('needs libtpu')
  asked = [*((*mesh, True) for mesh in [*MESHES, LONG_ROWS]), (*LONG_ROWS, False)]
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, json.dumps(asked)],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  return dict(zip(asked, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize(('topology', 'expert'), MESHES)
def test_every_host_of_a_tpu_holds_whole_samples(described, topology, expert):
  chips = int(np.prod([int(n) for n in topology.split(':')[1].split('x')]))
  check_whole_samples(described[topology, expert, True], chips, expert)


def check_whole_samples(told, chips, expert, local=4):
  """Of `local` chips a host, `expert` share the depth of a few samples that no other host has."""
  assert told['shape'] == [chips // expert, expert] and told['devices'] == chips
  assert all(len(hosts) == 1 for hosts in told['hosts'])
  taken = []
  for parts in told['parts'].values():
    depths = {}
    for samples, depth in parts:
      depths.setdefault(tuple(samples), []).append(depth)
    assert len(depths) == local // expert
    for shares in depths.values():
      spans = [(i * 96 // expert, (i + 1) * 96 // expert) for i in range(expert)]
      assert sorted(map(tuple, shares)) == spans
    taken += depths
  assert sorted(taken) == [(i, i + 2 * expert) for i in range(0, 2 * chips, 2 * expert)]


def test_rows_longer_than_a_host_are_refused_for_parts_of_samples_only(described):
  assert 'mesh.expert=8 does not divide its 4 devices' in described[*LONG_ROWS, True]['error']
  assert described[*LONG_ROWS, False]['shape'] == [2, 8]


class Device:
  """What `make_mesh` asks of a device; by default of a host of two."""

  platform, device_kind = 'cpu', 'cpu'

  def __init__(self, number, host=None):
    self.id, self.process_index = number, number // 2 if host is None else host


class Chip(Device):
  """Of a TPU whose hosts hold 2 x 2 chips each: JAX lays its mesh out along the torus."""

  platform, device_kind, core_on_chip, slice_index = 'tpu', 'TPU v5 lite', 0, 0

  def __init__(self, number, width):
    x, y = number % width, number // width
    self.coords = x, y, 0
    super().__init__(number, y // 2 * (width // 2) + x // 2)


@pytest.mark.parametrize('expert', [1, 2, 4])
@pytest.mark.parametrize(('width', 'height'), [(4, 4), (2, 4), (4, 8)])
def test_every_host_of_a_torus_holds_whole_samples(width, height, expert):
  chips = width * height
  told = describe([Chip(i, width) for i in range(chips)], expert, True)
  check_whole_samples(told, chips, expert)


def test_rows_along_a_torus_may_cross_hosts_where_samples_are_not_divided():
  told = describe([Chip(i, 4) for i in range(16)], 4, False)
  assert told['shape'] == [4, 4] and told['devices'] == 16
  assert any(len(hosts) > 1 for hosts in told['hosts'])  # or the rule above would be idle


def test_interleaved_hosts_are_put_together():
  """Devices 0, 2, 4, 6 are of host 0: rows of two in their order, then those of host 1."""
  devices = [Device(i, i % 2) for i in range(8)]
  options = ConfigDict({'data': -1, 'expert': 2, 'spatial': True})
  mesh = sharding.make_mesh(options, devices)
  rows = [[device.id for device in row] for row in mesh.devices]
  assert rows == [[0, 2], [4, 6], [1, 3], [5, 7]]
  assert mesh.axis_names == ('data', 'expert')
  told = describe(devices, 2, True)
  assert told['parts'][0] == [[(0, 4), (0, 48)], [(0, 4), (48, 96)],
                              [(4, 8), (0, 48)], [(4, 8), (48, 96)]]  # fmt: skip


@hypothesis.given(
  hosts=st.integers(1, 4), local=st.sampled_from([2, 4, 8]), order=st.randoms(use_true_random=False)
)
def test_in_any_order_of_devices(hosts, local, order):
  of_host = [host for host in range(hosts) for _ in range(local)]
  order.shuffle(of_host)
  devices = [Device(i, host) for i, host in enumerate(of_host)]
  for expert in (n for n in (1, 2, 4, 8) if n <= local):
    check_whole_samples(describe(devices, expert, True), len(devices), expert, local)


def test_a_row_of_two_hosts_is_refused_without_tpus_too():
  told = describe([Device(i) for i in range(8)], 4, True)
  assert 'mesh.expert=4 does not divide its 2 devices' in told['error']


def in_slices(count, *sizes, order=None):
  """TPU chips of hosts of two, in a line; those of slice i are `sizes[i]` in a row."""
  devices = [Device(i) for i in range(count)]
  of_slice = [i for i, size in enumerate(sizes) for _ in range(size)]
  for device, index in zip(devices, of_slice, strict=True):
    device.platform, device.core_on_chip, device.slice_index = 'tpu', 0, index
    device.coords = device.id - of_slice.index(index), 0, 0
  return [devices[i] for i in order or range(count)]


@pytest.mark.parametrize('order', [None, [0, 4, 1, 5, 2, 6, 3, 7]])
@pytest.mark.parametrize('spatial', [False, True])
@pytest.mark.parametrize('expert', [1, 2])
def test_slices_share_the_data_axis_alone(expert, spatial, order):
  """What `expert` exchanges stays inside a slice, in whatever order the devices come."""
  options = ConfigDict({'data': -1, 'expert': expert, 'spatial': spatial})
  mesh = sharding.make_mesh(options, in_slices(8, 4, 4, order=order))
  assert mesh.shape == {'data': 8 // expert, 'expert': expert}
  indices = [{device.slice_index for device in row} for row in mesh.devices]
  assert indices == [{0}] * (4 // expert) + [{1}] * (4 // expert)
  assert {device.id for device in mesh.devices.flat} == set(range(8))


def test_hosts_with_gpus_are_no_slices():
  """JAX gives the GPUs of each host a slice index of their own."""
  devices = [Device(i) for i in range(8)]
  for device in devices:
    device.platform, device.slice_index = 'gpu', device.process_index
  told = describe(devices, 8, False)
  assert told['shape'] == [1, 8] and told['hosts'] == [[0, 1, 2, 3]]


@pytest.mark.parametrize(('sizes', 'expert'), [((4, 4), 8), ((6, 2), 2), ((3, 5), 1)])
def test_slices_that_cannot_share_are_refused(sizes, expert):
  error = describe(in_slices(8, *sizes), expert, False)['error']
  assert f'2 TPU slices of {sizes[0]}, {sizes[1]} devices' in error


def test_batches_have_their_global_shape():
  mesh = sharding.local_mesh(jax.devices()[:1])
  batch = {'image': np.zeros((2, 4, 4, 4, 1), np.float32), 'frame': np.zeros((2, 4), np.float32)}
  for spatial in (False, True):
    placed = sharding.shard_batch(mesh, batch, spatial=spatial)
    assert {name: x.shape for name, x in placed.items()} == {k: v.shape for k, v in batch.items()}
  assert sharding.replicate(mesh, {'x': 1.5})['x'].shape == ()
