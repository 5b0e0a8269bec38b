"""Device mesh and where every array lives on it."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from input_pipeline.batches import spec
from mome_jax.errors import UserError

REPLICATED = P()
# Path of a leaf of the train state -> its spec; the first match wins. The optimizer's moments have
# the paths of their parameters in them, so one rule covers both.
RULES = (
  (r'.*/bank/(kernel|bias)_(in|out)', P('expert')),
  (r'.*', REPLICATED),
)
# Leaves that mesh.fsdp also spreads over `data`, and from which size on: an all-gather of a small
# array costs more than the memory it saves.
FSDP_PATHS = r'(params|ema|opt_state)/.*'
FSDP_SIZE = 2**14


class MeshError(UserError):
  """Mesh, devices and config do not fit; the message names the numbers and the fix."""


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The (data, expert) mesh over all devices of all hosts.

  Several TPU slices share `data` alone, one block of rows each: within a step they exchange
  gradients, over the network between them, and whatever `expert` exchanges stays inside a slice.

  Args:
    config: `config.mesh`: `data` and `expert` axis sizes, data = -1 takes the devices that expert
      leaves; `spatial`, whether `expert` shards the depth of the volumes.
    devices: other ones than those of this run, to compile for.

  Raises:
    MeshError: if the sizes do not multiply to the number of devices, a host would hold a part of a
      sample, or a row of the mesh would have devices of two TPU slices.
  """
  devices = devices or jax.devices()
  data = len(devices) // max(config.expert, 1) if config.data == -1 else config.data
  if config.expert < 1 or data * config.expert != len(devices):
    raise MeshError(
      f'mesh.data={config.data} x mesh.expert={config.expert} does not fit {len(devices)} devices; '
      f'their product must be {len(devices)}, where mesh.data=-1 stands for what mesh.expert leaves'
    )
  slices = slices_of(devices)
  for chips in slices:
    if len(chips) % config.expert or len(chips) != len(devices) // len(slices):
      raise MeshError(
        f'{len(slices)} TPU slices of {", ".join(str(len(one)) for one in slices)} devices: each '
        f'must have as many as the others, and a multiple of mesh.expert={config.expert}'
      )
  parts = [_mesh_of_slice(config, chips).devices for chips in slices]
  return _over(np.concatenate(parts))


def slices_of(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
  """The devices of each TPU slice; other platforms are one."""
  slices: dict[int, list] = {}
  for device in devices:
    # On GPUs JAX numbers the hosts so.
    index = getattr(device, 'slice_index', 0) if device.platform == 'tpu' else 0
    slices.setdefault(index, []).append(device)
  return [slices[index] for index in sorted(slices)]


def _mesh_of_slice(config: ConfigDict, devices: Sequence[jax.Device]) -> Mesh:
  mesh = _mesh(len(devices) // config.expert, config.expert, devices)
  if config.spatial and any(len({d.process_index for d in row}) > 1 for row in mesh.devices):
    return _mesh_of_hosts(config.expert, devices)
  return mesh


def local_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh of this host's own devices (or `devices`), all on `data`: for work hosts do apart."""
  devices = devices or jax.local_devices()
  return _mesh(len(devices), 1, devices)


def _mesh(data: int, expert: int, devices) -> Mesh:
  # An axis of the mesh may be part of one of the chips' torus: a row of 2 of v6e:4x4.
  array = mesh_utils.create_device_mesh((data, expert), devices, allow_split_physical_axes=True)
  return _over(array)


def _mesh_of_hosts(expert: int, devices) -> Mesh:
  """A mesh of which no row has devices of two hosts, each of which would feed half a sample."""
  hosts: dict[int, list] = {}
  for device in devices:
    hosts.setdefault(device.process_index, []).append(device)
  for local in hosts.values():
    if len(local) % expert:
      raise MeshError(
        f'mesh.spatial needs whole samples on each host: mesh.expert={expert} does not divide its '
        f'{len(local)} devices'
      )
  return _over(np.concatenate([_mesh(len(d) // expert, expert, d).devices for d in hosts.values()]))


def _over(array: np.ndarray) -> Mesh:
  # Auto: under Explicit, convolutions over sharded axes fail.
  return Mesh(array, ('data', 'expert'), axis_types=(AxisType.Auto,) * 2)


def tree_shardings(mesh: Mesh, tree: Any, *, fsdp: bool = False) -> Any:
  """A NamedSharding per leaf of `tree`, by RULES over the leaf's path ('params/model/...').

  Args:
    mesh: from `make_mesh`.
    tree: of arrays or shapes.
    fsdp: also spread the longest free axis of large parameters and moments over `data`.

  Raises:
    MeshError: if an axis of a leaf cannot be divided as its rule says.
  """

  def place(path, leaf):
    name = '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)
    spec = next(spec for rule, spec in RULES if re.fullmatch(rule, name))
    for size, axis in zip(leaf.shape, spec, strict=False):
      if axis is not None and size % mesh.shape[axis]:
        raise MeshError(
          f'{name} {leaf.shape} cannot be shared by mesh.{axis}={mesh.shape[axis]} devices evenly'
        )
    if fsdp and re.fullmatch(FSDP_PATHS, name) and math.prod(leaf.shape) >= FSDP_SIZE:
      spec = _spread(spec, leaf.shape, mesh.shape['data'])
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(place, tree)


def _spread(spec: P, shape: tuple[int, ...], devices: int) -> P:
  """`spec` with 'data' on the longest free axis that `devices` divides, if there is one."""
  axes = [*spec] + [None] * (len(shape) - len(spec))
  free = [i for i, n in enumerate(shape) if axes[i] is None and n % devices == 0]
  if free:
    axes[max(free, key=lambda i: shape[i])] = 'data'
  return P(*axes)


def batch_spec(name: str, *, spatial: bool) -> P:
  """How the array `name` of `spec.BATCH` is split: samples over all devices.

  With `spatial`, samples over `data` and the depth of volumes over `expert`.
  """
  if not spatial:
    return P(('data', 'expert'))
  return P('data', 'expert') if spec.BATCH[name].is_volume else P('data')


def check_batch(mesh: Mesh, config: ConfigDict) -> None:
  """Refuses what the mesh cannot divide.

  Args:
    mesh: from `make_mesh`.
    config: the whole config.

  Raises:
    MeshError: if the mesh cannot divide the batch or the depth of its patches, or the backbone is
      not made for a divided depth.
  """
  spatial, patch = config.mesh.spatial, tuple(config.data.patch)
  split = mesh.shape['data'] if spatial else mesh.size
  parts = config.train.accumulate
  if config.train.batch_size % (split * parts):
    raise MeshError(
      f'train.batch_size={config.train.batch_size} cannot be shared evenly by {split} '
      + ('rows of the mesh' if spatial else 'devices')
      + (f' in train.accumulate={parts} parts' if parts > 1 else '')
      + f'; set it to a multiple of {split * parts}, or let the run see fewer devices'
    )
  if spatial and patch[0] % mesh.shape['expert']:
    raise MeshError(
      f'mesh.spatial: mesh.expert={mesh.shape["expert"]} does not divide the depth of '
      f'data.patch={patch}'
    )
  if spatial and 'swin' in config.model.backbone.name:
    raise MeshError(
      'mesh.spatial: shifted windows would gather the whole depth on each device; use a '
      f'convolutional backbone instead of {config.model.backbone.name}'
    )


def shard_batch(
  mesh: Mesh, batch: dict[str, np.ndarray], *, spatial: bool = False
) -> dict[str, jax.Array]:
  """This host's samples of a batch -> global arrays, split as `batch_spec` says."""
  # JAX would infer another shape from a mesh that a host does not fill with whole samples.
  hosts = len({device.process_index for device in mesh.devices.flat})
  return {
    name: jax.make_array_from_process_local_data(
      NamedSharding(mesh, batch_spec(name, spatial=spatial)),
      samples,
      (hosts * len(samples), *samples.shape[1:]),
    )
    for name, samples in batch.items()
  }


def replicate(mesh: Mesh, tree: Any) -> Any:
  """Arrays that every host holds in full -> global arrays on every device."""
  where = NamedSharding(mesh, REPLICATED)
  place = lambda x: jax.make_array_from_process_local_data(where, x, x.shape)
  return jax.tree.map(lambda x: place(np.asarray(x)), tree)
