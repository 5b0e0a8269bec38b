"""Device mesh and where every array lives on it."""

import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

BATCH = P(('data', 'expert'))  # outside the expert banks the batch uses every device
REPLICATED = P()
# Path of a leaf of the train state -> its spec; the first match wins. The optimizer's moments have
# the paths of their parameters in them, so one rule covers both.
RULES = ((r'.*', REPLICATED),)


def make_mesh(config) -> Mesh:
  """The (data, expert) mesh over all devices.

  Args:
    config: `data` and `expert` axis sizes; data = -1 takes the devices that expert leaves.

  Raises:
    ValueError: if the sizes do not multiply to the number of devices.
  """
  devices = jax.device_count()
  data = devices // config.expert if config.data == -1 else config.data
  if data * config.expert != devices:
    raise ValueError(
      f'mesh.data={config.data} x mesh.expert={config.expert} does not fit {devices} devices'
    )
  # Auto: under jax.make_mesh's default, Explicit, convolutions over sharded axes fail.
  return jax.make_mesh((data, config.expert), ('data', 'expert'), axis_types=(AxisType.Auto,) * 2)


def tree_shardings(mesh: Mesh, tree):
  """A NamedSharding per leaf of `tree`, by RULES over the leaf's path ('params/model/...')."""

  def place(path, _):
    name = '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)
    return NamedSharding(mesh, next(spec for rule, spec in RULES if re.fullmatch(rule, name)))

  return jax.tree_util.tree_map_with_path(place, tree)


def shard_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """This host's rows of a batch -> global arrays, the batch axis split over all devices."""
  sharding = NamedSharding(mesh, BATCH)
  return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def replicate(mesh: Mesh, tree):
  """Arrays that every host holds in full -> global arrays on every device."""
  return jax.device_put(tree, NamedSharding(mesh, REPLICATED))
