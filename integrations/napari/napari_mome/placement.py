"""Where a layer of napari lies in the patient, and how a scan becomes a layer.

The world of napari has axes and no directions. This plugin, as whoever shows ITK images or DICOM,
lets them grow to superior, posterior and left, in mm: then slices stand upright, the patient's
right is on the left. Layers of other origin may use any other directions; these are named by three
letters, one an axis, of R or L, A or P, S or I: where the axis grows to. They are not needed where
the file that a layer was read from has its voxels: then the file tells where they lie.
"""

import dataclasses
import zlib
from typing import Any

import numpy as np
from napari.layers import Image
from nibabel import orientations

from input_pipeline import remarks
from input_pipeline.ct import volume
from input_pipeline.ct.volume import Geometry, Volume
from mome_jax.errors import UserError
from mome_jax.predict.find_scans import LoadedScan
from napari_mome import same_file

WORLD = 'SPL'
SCAN = 'mome_scan'  # in the metadata of layers that this plugin has read
_FIX = 'correct layer.scale, layer.affine or layer.units'
CONTRAST = -160, 240  # HU; the usual window of soft tissue


class LayerError(UserError):
  """A layer that cannot be segmented as it is; one line with its name and the fix."""


@dataclasses.dataclass(frozen=True, eq=False)
class PlacedScan:
  """The scan of a layer.

  Attributes:
    loaded: the scan, in canonical order.
    grid: of the layer.
  """

  loaded: LoadedScan
  grid: Geometry

  def on_layer(self, array: np.ndarray) -> np.ndarray:
    """(D, H, W) of the canonical grid -> the axes of the layer."""
    return volume.from_canonical(array, self.grid)

  def from_layer(self, array: np.ndarray) -> np.ndarray:
    """The axes of the layer -> (D, H, W) of the canonical grid."""
    return orientations.apply_orientation(array, self.grid.orientation)


def place(layer: Image, world: str = WORLD) -> PlacedScan:
  """The scan of a layer.

  Args:
    layer: of three axes.
    world: where the axes of napari's world grow to.

  Raises:
    LayerError: if it is no CT in HU, or its place is not known.
    VolumeError: as `volume.to_canonical`.
  """
  data, read = voxels(layer), layer.metadata.get(SCAN)
  if isinstance(read, LoadedScan):
    grid = _geometry(data.shape, _to_patient(layer, world), layer.name)
    if _is_of(data, grid, read):
      return PlacedScan(read, grid)
  array = np.asarray(data)
  if array.dtype.kind not in 'iuf':
    raise LayerError(f'{layer.name}: voxels of type {array.dtype}; choose a CT in HU')
  path = layer.source.path
  same = same_file.find(array, path) if path and read is None else None
  if same is not None:
    remarks.tell(f'{layer.name}: has the voxels of {path}, which tells where they lie')
    return PlacedScan(same[0], _geometry(array.shape, same[1], layer.name))
  to_patient = _to_patient(layer, world)
  array = volume.to_hu(array, layer.name)
  low, high = float(array.min()), float(array.max())
  if low > -100 or high < 100:
    fix = 'subtract 1024 where air is 0' if low >= 0 else 'choose the CT itself'
    raise LayerError(f'{layer.name}: values {low:g}..{high:g} are not HU (air -1000); {fix}')
  scan = volume.to_canonical(array, to_patient, name=layer.name, fix=_FIX)
  return PlacedScan(LoadedScan(scan), scan.geometry)


def voxels(layer: Image) -> Any:
  """The array of a layer, in full resolution.

  Raises:
    LayerError: if it has not three axes.
  """
  if layer.rgb or layer.ndim != 3:
    kind = 'a colour image' if layer.rgb else f'of {layer.ndim} axes'
    raise LayerError(f'{layer.name}: is {kind}; choose a CT of three axes (split a stack)')
  return layer.data[0] if layer.multiscale else layer.data


def state_of(layer: Image, world: str) -> tuple:
  """What `place` depends on: equal before and after, if nothing has changed.

  Of the voxels themselves: an array that is changed in place stays the same object.

  Raises:
    LayerError: if the layer has not three axes.
  """
  array = np.ascontiguousarray(voxels(layer))
  placed = to_world(layer).tobytes(), tuple(map(str, layer.units)), world
  return zlib.crc32(array), array.shape, *placed


def directions(world: str) -> np.ndarray:
  """(4, 4): a world whose axes grow to these directions -> mm to right, anterior, superior.

  Raises:
    LayerError: if the letters name no three axes.
  """
  codes = world.strip().upper()
  if len(codes) != 3 or [len({*pair} & {*codes}) for pair in ('LR', 'PA', 'IS')] != [1, 1, 1]:
    raise LayerError(
      f'world axes {world!r}: expected three letters, one of R or L, A or P, S or I, such as '
      f'{WORLD}'
    )
  turned = np.zeros((4, 4))
  turned[3, 3] = 1
  for axis, (to, sign) in enumerate(orientations.axcodes2ornt(tuple(codes)).astype(int)):
    turned[to, axis] = sign
  return turned


def layer_of(loaded: LoadedScan, name: str) -> tuple[np.ndarray, dict[str, Any], str]:
  """A scan as napari takes it: a view of its array, how it is shown and placed, 'image'."""
  array, transform = upright(loaded.volume)
  shown = {
    'name': name,
    'contrast_limits': CONTRAST,
    'colormap': 'gray',
    'metadata': {SCAN: loaded},
    **transform,
  }
  return array, shown, 'image'


def upright(scan: Volume) -> tuple[np.ndarray, dict[str, Any]]:
  """The array with its axes as near as they are to WORLD, and where napari is to place it."""
  turn = orientations.ornt_transform(
    orientations.axcodes2ornt(tuple('RAS')), orientations.axcodes2ornt(tuple(WORLD))
  )
  array = orientations.apply_orientation(scan.array, turn)
  affine = scan.geometry.canonical_affine @ orientations.inv_ornt_aff(turn, scan.array.shape)
  placed = np.linalg.inv(directions(WORLD)) @ affine
  scale = np.linalg.norm(placed[:3, :3], axis=0)
  transform = {'scale': scale, 'axis_labels': ('z', 'y', 'x'), 'units': ('mm', 'mm', 'mm')}
  if np.allclose(placed[:3, :3], np.diag(scale), atol=1e-6):
    return array, {**transform, 'translate': placed[:3, 3]}
  placed[:3, :3] /= scale  # an oblique scan
  return array, {**transform, 'affine': placed}


def _to_patient(layer: Image, world: str) -> np.ndarray:
  """(4, 4): voxel indices of a layer -> mm to right, anterior, superior."""
  return directions(world) @ _to_mm(layer) @ to_world(layer)


def to_world(layer: Image) -> np.ndarray:
  """(4, 4) voxel indices of a layer -> its world, whatever its transform is made of."""
  origin = np.asarray(layer.data_to_world((0, 0, 0)), float)
  affine = np.eye(4)
  affine[:3, 3] = origin
  for axis in range(3):
    affine[:3, axis] = np.asarray(layer.data_to_world(np.eye(3)[axis]), float) - origin
  return affine


def _to_mm(layer: Image) -> np.ndarray:
  """(4, 4): the units of a layer -> mm; pixels count as mm.

  Raises:
    LayerError: if they are no lengths, or nothing tells how large voxels are.
  """
  sizes = np.ones(4)
  for axis, unit in enumerate(layer.units):
    if str(unit) in ('pixel', ''):
      if np.allclose(to_world(layer)[:3, :3], np.eye(3)):
        raise LayerError(
          f'{layer.name}: nothing tells how large its voxels are; set layer.scale in mm, or '
          "layer.units = 'mm' where 1 mm is right"
        )
      continue
    try:
      sizes[axis] = (1 * unit).to('mm').magnitude
    except Exception as error:  # of pint
      raise LayerError(f'{layer.name}: its unit {unit} is no length; set layer.units') from error
  return np.diag(sizes)


def _geometry(shape: tuple[int, ...], affine: np.ndarray, name: str) -> Geometry:
  nothing = np.broadcast_to(np.int8(0), shape)
  return volume.to_canonical(nothing, affine, name=name, fix=_FIX).geometry


def _is_of(data: Any, grid: Geometry, read: LoadedScan) -> bool:
  """Whether a layer still is the scan that it was read from."""
  array, geometry = read.volume.array, read.volume.geometry
  return (
    isinstance(data, np.ndarray)
    and np.may_share_memory(data, array)
    and tuple(grid.canonical_shape) == array.shape
    and np.allclose(grid.canonical_affine, geometry.canonical_affine, atol=1e-4)
  )
