"""Synthetic CT of the trunk, for the demo and the tests: no patient data needed.

Anatomy is drawn in an atlas: millimetres, x to the patient's right, y anterior, z superior, origin
in front of the spine between the kidneys. A patient is the atlas stretched, bent by smooth random
waves, with every organ moved, resized and roughened. A structure is a signed distance (mm, negative
inside) painted over what lies behind it, so that a voxel on a surface holds a mixture of both
sides. Only the noise depends on the grid: a seed is the same patient at any spacing.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline import anatomy
from input_pipeline.sources.phantom import atlas, shapes

# fmt: off
CLASSES = (
  'spleen', 'right kidney', 'left kidney', 'liver', 'stomach', 'aorta', 'pancreas', 'right lung',
  'left lung', 'bladder', 'liver tumor', 'kidney cyst',
)
_CODES = {name: anatomy.TEMPLATE.get(name).index for name in CLASSES}
_CYST_CODES = {
  names[1]: code for code, names in anatomy.SIDED_CODES.items() if names[0] == 'kidney cyst'
}
_SIDES = {'right kidney': 1, 'left kidney': -1}  # sign of x

_ABSENT = 0.15  # probability that a phantom has no liver tumor; the same for the kidney cyst
_WARP_MM = 3.0  # standard deviation of the waves that bend the whole patient
# fmt: on


@dataclasses.dataclass(frozen=True)
class _Patient:
  """What a seed decides: stretch, bend, habitus, contrast, and the organs' jittered tables."""

  scale: np.ndarray  # (3,)
  warp: tuple[shapes.Field, ...]
  fat: float  # mm under the skin
  muscle: float
  hu: Mapping[str, float]
  blobs: Mapping[str, shapes.Blob]
  tubes: Mapping[str, np.ndarray]  # (n, 4)


def _draw_patient(rng: np.random.Generator) -> _Patient:
  phase = rng.uniform()
  hu = {k: a + phase * (b - a) + rng.normal(0, s) for k, (a, b, s) in atlas.HU.items()}
  blobs: dict[str, shapes.Blob] = {}
  tubes: dict[str, np.ndarray] = {}
  for name, (center, radii, degrees) in atlas.BLOBS.items():
    size = rng.uniform(*atlas.SIZES.get(name, (0.92, 1.08)))
    moved = np.add(center, rng.normal(0, 2.5, 3).clip(-6, 6))
    resized = np.multiply(radii, size * rng.uniform(0.95, 1.05, 3))
    blobs[name] = (moved, resized, np.add(degrees, rng.normal(0, 5, 3)))
  for name, controls in atlas.TUBES.items():
    points = np.array(controls, float)
    # The ends stay: there the vessels and the bowel join.
    points[1:-1, :3] += rng.normal(0, 2.5, points[1:-1, :3].shape).clip(-6, 6)
    points[:, 3] *= rng.uniform(0.88, 1.15)
    tubes[name] = shapes.curve(points)
  scale = rng.uniform((0.94, 0.94, 0.95), (1.06, 1.06, 1.06))
  warp = tuple(shapes.waves(rng, _WARP_MM, 130.0) for _ in range(3))
  fat, muscle = rng.uniform(7, 28), rng.uniform(0.85, 1.15)
  return _Patient(scale, warp, fat, muscle, hu, blobs, tubes)


def _new_canvas(patient: _Patient, spacing: np.ndarray) -> shapes.Canvas:
  """An empty scan whose field of view leaves some air around the body."""
  (sx, sy, sz), fat = patient.scale, patient.fat
  wide = 134 * sx + 18 * patient.muscle + 1.2 * fat + 14
  low = (-wide, -(110 * sy + 0.8 * fat + 34), atlas.BOTTOM * sz)
  high = (wide, 106 * sy + 1.25 * fat + 14, atlas.TOP * sz)
  return shapes.Canvas(np.array((low, high)), spacing, patient.scale, patient.warp)


def _paint_trunk(c: shapes.Canvas, patient: _Patient, rng: np.random.Generator) -> None:
  """Table, skin, subcutaneous fat, the muscular wall, and the fat that fills the cavity."""
  hu, (x, y, z), inner = patient.hu, c.p, atlas.cavity(c.p)
  behind = np.clip(-(y + 40) / 40, 0, 1)
  belly = np.clip((y - 10) / 40, 0, 1) * np.clip((-60 - z) / 40, 0, 1)
  muscle = atlas.profile(z, atlas.MUSCLE) * patient.muscle + 10 * behind
  muscle += belly * (10 - muscle)
  uneven = 1 + shapes.waves(rng, 0.15, 140.0)(c.p)
  fat = patient.fat * atlas.profile(z, atlas.FATNESS) * uneven * (1 - 0.35 * behind)
  back = -(108 + 0.6 * patient.fat)
  skin = shapes.smooth_max(24.0, inner - muscle - fat, back - y)  # flat where it lies
  if rng.uniform() < 0.75:
    table = np.abs(c.mm[1] - (back * patient.scale[1] - 13) - (c.mm[0] / 60) ** 2)
    c.paint(c.whole, table - 8, -420.0)
    c.paint(c.whole, table - 6, -900.0)
  c.paint(c.whole, skin, hu['skin'])
  c.paint(c.whole, skin + 2, hu['fat'] + shapes.waves(rng, 4, 25.0)(c.p))
  fibres = shapes.waves(rng, 6.0, 22.0, 6)(c.p)
  c.paint(c.whole, np.maximum(inner - muscle, skin + 4), hu['muscle'] + fibres)
  sway = shapes.waves(rng, 1.5, 70.0)(c.p)
  for share in (0.33, 0.66):  # fat between the layers of the wall
    plane = np.abs(inner - share * muscle + sway) - 0.06 * np.clip(muscle, 5, 40)
    c.paint(c.whole, np.maximum(plane, 45 - np.abs(x)), -60.0)
  c.paint(c.whole, inner, hu['fat'] + shapes.waves(rng, 7.0, 18.0, 6)(c.p))


def _paint_tubes(c: shapes.Canvas, patient: _Patient, hu: str, *names: str, code: int = 0) -> None:
  for name in names:
    box, distance, _ = c.tube([patient.tubes[name]])
    c.paint(box, distance, patient.hu[hu], code)


def _paint_chest(c: shapes.Canvas, patient: _Patient, rng: np.random.Generator) -> None:
  """Diaphragm, lungs with their vessels, heart, great vessels, airways."""
  hu, blobs = patient.hu, patient.blobs
  box = c.box((-150, -120, -20), (150, 120, atlas.TOP + 30))
  x, y, _ = p = c.at(box)
  inner, above = atlas.cavity(p), atlas.diaphragm(p)
  c.paint(box, np.maximum(np.abs(above) - 2.2, inner), hu['muscle'])
  middle = np.abs(x + 2) - 24 + 0.25 * np.clip(y - 20, 0, 80)
  middle = shapes.smooth_min(14.0, middle, shapes.ellipsoid(p, blobs['heart']) - 5)
  lungs = shapes.smooth_max(8.0, inner + 3, 3 - above, -middle) + shapes.waves(rng, 0.8, 45.0)(p)
  texture = hu['lung'] - 0.35 * y + shapes.waves(rng, 12.0, 24.0, 6)(p)
  vessels = []
  for side, name in ((1, 'right lung'), (-1, 'left lung')):
    c.paint(box, np.maximum(lungs, -side * x), texture, _CODES[name])
    for way in rng.normal((0.7 * side, 0.1, -0.1), 0.7, (10, 3)):
      vessels += shapes.tree(rng, (28 * side, -4, rng.uniform(110, 150)), way, (30, 5.0, 6))
  _, distance, _ = c.tube(vessels, box)
  c.paint(box, np.maximum(distance, lungs + 1), hu['lung vessel'], None)
  chambers = {'left ventricle': 'aorta', 'right heart': 'heart', 'left atrium': 'aorta'}
  for name, blood in ({'heart': 'myocardium'} | chambers).items():
    box = c.blob_box(blobs[name])
    c.paint(box, shapes.ellipsoid(c.at(box), blobs[name]), hu[blood])
  _paint_tubes(c, patient, 'muscle', 'esophagus')
  _paint_tubes(c, patient, 'heart', 'pulmonary artery', 'left pulmonary artery', 'superior cava')
  _paint_tubes(c, patient, 'aorta', 'ascending aorta', code=_CODES['aorta'])
  _paint_tubes(c, patient, 'air', 'right bronchus', 'left bronchus')


def _paint_bone(
  c: shapes.Canvas, patient: _Patient, box: shapes.Box, distance: np.ndarray, shell: float = 1.8
) -> None:
  c.paint(box, distance, patient.hu['cortical bone'])
  c.paint(box, distance + shell, patient.hu['marrow'])


def _paint_spine(c: shapes.Canvas, patient: _Patient) -> None:
  """Vertebrae with arches and processes, discs, canal, and the muscles on either side."""
  hu = patient.hu
  for side in (-1, 1):
    muscle = [np.array([[side * 31, -88, z, 17] for z in range(-150, 240, 30)], float)]
    box, distance, _ = c.tube(muscle)
    c.paint(box, distance, hu['muscle'] - 3)
  box = c.box((-60, -125, -130), (60, 0, atlas.TOP + 30))
  x, y, z = c.at(box)
  x, y = np.abs(x), y - 8 * np.cos((z + 55) / 80) + 4  # the lordosis
  level, end = np.mod(z, 31.0) - 15.5, -128 - z
  height = np.abs(level)
  column = 18 * (np.sqrt((x / 22) ** 2 + ((y + 42) / 16.5) ** 2) - 1)
  c.paint(box, np.maximum(column + 1, end), hu['disc'])
  _paint_bone(c, patient, box, np.maximum(shapes.smooth_max(3.0, column, height - 12.5), end), 1.6)
  canal = np.hypot(x, y + 67)
  arch = shapes.smooth_max(3.0, canal - 13 + 0.15 * height, height - 13)
  spinous = shapes.smooth_max(3.0, x - 3.5, np.abs(y + 88) - 14, height - 9)
  transverse = shapes.smooth_max(3.0, x - 36, np.abs(y + 67) - 5, np.abs(level - 3) - 7)
  back = shapes.smooth_min(4.0, arch, np.minimum(spinous, transverse))
  _paint_bone(c, patient, box, np.maximum(back, end))
  c.paint(box, np.maximum(canal - 8.5, end), hu['csf'])


def _paint_ribs(c: shapes.Canvas, patient: _Patient) -> None:
  """Bands on the cavity's surface that slope down towards the front, and the sternum."""
  box = c.box((-160, -130, -50), (160, 130, atlas.TOP + 30))
  x, y, z = p = c.at(box)
  inner = atlas.cavity(p)
  along = ((y + 85) / 175).clip(0, 1)  # 0 at the spine, 1 at the sternum
  height = (z + 75 * along) / 28
  number = np.floor(height)  # from the lowest; each reaches further forward than the one below
  across = np.hypot(inner - 6, (height - number - 0.5) * 28 * 0.55) - 4
  limit = np.maximum(along - (0.25 + 0.22 * (number - 1)), 0.2 - np.abs(x) / 100) * 175
  rib = np.maximum(np.maximum(across, limit), (1 - number) * 10)
  cartilage = along > 0.86
  c.paint(box, rib, np.where(cartilage, 120, patient.hu['cortical bone']))
  c.paint(box, rib + 1.4, np.where(cartilage, 110, patient.hu['marrow']))
  sternum = shapes.smooth_max(4.0, np.abs(inner - 8) - 5.5, np.abs(x) - 17)
  _paint_bone(c, patient, box, np.maximum(np.maximum(sternum, 88 - z), -y), 1.6)


def _paint_pelvis(c: shapes.Canvas, patient: _Patient) -> None:
  """Psoas, iliac wings (sheets in the cavity's wall), sacrum, hips, pubis."""
  box = c.box((-160, -120, atlas.BOTTOM - 30), (160, 100, -50))
  x, y, z = p = c.at(box)
  wing = np.abs(atlas.cavity(p) - 9 + 0.06 * (z + 150)) - 4.5 - 0.05 * np.clip(-120 - z, 0, 50)
  top, front = z + 74 + 0.006 * (y + 15) ** 2, y - 42 - 0.35 * (z + 90)
  wing = shapes.smooth_max(5.0, wing, np.maximum(top, -168 - z), front, 38 - np.abs(x))
  _paint_bone(c, patient, box, wing)
  _paint_bone(c, patient, box, shapes.ellipsoid(p, ((0, -60, -138), (52, 17, 46), (18, 0, 0))))
  for side in (1, -1):
    psoas, femur, pubis = (
      shapes.curve(t) * (side, 1, 1, 1) for t in (atlas.PSOAS, atlas.FEMUR, atlas.PUBIS)
    )
    muscle, distance, _ = c.tube([psoas])
    c.paint(muscle, distance, patient.hu['muscle'])
    socket, joint, head = (
      shapes.ellipsoid(p, ((cx * side, -8, cz), radii, (0, 0, 0)))
      for cx, cz, radii in ((88, -174, (37, 38, 36)), (94, -178, (30,) * 3), (91, -176, (24,) * 3))
    )
    _paint_bone(c, patient, box, socket)
    c.paint(box, joint, 70.0)
    _, shaft, _ = c.tube([femur], box)
    _paint_bone(c, patient, box, shapes.smooth_min(6.0, head, shaft), 1.6)
    _, distance, _ = c.tube([pubis], box)
    _paint_bone(c, patient, box, distance)


def _liver(patient: _Patient, bumps: shapes.Field) -> shapes.Field:
  """The liver's distance as a function of atlas points: two lobes under the diaphragm."""

  def distance(p: np.ndarray) -> np.ndarray:
    lobes = [shapes.ellipsoid(p, patient.blobs[name]) for name in ('right lobe', 'left lobe')]
    lateral = np.clip(p[0] - 60, 0, 60)
    below = -(0.6 * p[1] + 0.8 * p[2] + 38 + 0.45 * lateral)  # room for the kidney and the colon
    shape = shapes.smooth_max(15.0, shapes.smooth_min(22.0, *lobes) + bumps(p), below)
    return shapes.smooth_max(8.0, shape, atlas.cavity(p) + 4, atlas.diaphragm(p) + 3)

  return distance


def _paint_liver(c: shapes.Canvas, patient: _Patient, rng: np.random.Generator) -> shapes.Field:
  liver = _liver(patient, shapes.waves(rng, 2.5, 75.0))
  box = c.box((-85, -100, -100), (150, 110, 100))
  inside = liver(c.at(box))
  uneven = shapes.waves(rng, 2.5, 40.0)(c.at(box))
  c.paint(box, inside, patient.hu['liver'] + uneven, _CODES['liver'])
  vessels = []
  for ahead in ((1, -0.3, -0.5), (0.6, 0.8, -0.5), (-0.5, 1, -0.4)):
    vessels += shapes.tree(rng, (24, 0, 72), ahead, (32, 4.5, 4))  # hepatic veins
  for ahead in ((1, 0.1, 0.2), (1, -0.5, -0.6), (-0.6, 1, 0.6)):
    vessels += shapes.tree(rng, (38, 10, 28), ahead, (30, 4.0, 4))  # portal branches
  _, distance, _ = c.tube(vessels, box)
  c.paint(box, np.maximum(distance, inside + 3), patient.hu['hepatic vessel'], None)
  return liver


def _paint_tumors(
  c: shapes.Canvas, patient: _Patient, liver: shapes.Field, rng: np.random.Generator
) -> None:
  """One to three lesions deep enough in the liver, and away from what is painted over it."""
  points = rng.uniform((-60, -90, -80), (145, 100, 90), (4000, 3)).T.astype(np.float32)
  room = -liver(points)
  for name in ('gallbladder', 'right kidney'):
    room = np.minimum(room, shapes.ellipsoid(points, patient.blobs[name]) - 3)
  for name in ('postcava', 'stomach', 'duodenum', 'pancreas', 'right colon', 'transverse colon'):
    for *center, radius in patient.tubes[name].astype(np.float32):
      gap = np.linalg.norm(points - shapes.column(center, points), axis=0) - radius
      room = np.minimum(room, gap)
  for radius in np.sort(rng.uniform(8, 25, rng.integers(1, 4)))[::-1]:
    if room.max() < 12:
      break
    radius = min(radius, room.max() - 4)
    center = points[:, int(np.argmax(room >= radius + 4))]
    blob = (center, radius * rng.uniform(0.9, 1.1, 3), rng.uniform(0, 90, 3))
    box = c.blob_box(blob)
    p = c.at(box)
    distance = shapes.ellipsoid(p, blob) + shapes.waves(rng, 0.07 * radius, 2.2 * radius)(p)
    distance = np.maximum(distance, liver(p) + 2)
    contrast = rng.uniform(25, 45) if rng.uniform() < 0.2 else -rng.uniform(25, 50)
    necrosis = (-distance / radius).clip(0, 1) * (-15 if radius > 14 else 0)
    c.paint(box, distance, patient.hu['liver'] + contrast + necrosis, _CODES['liver tumor'])
    gap = np.linalg.norm(points - center[:, None], axis=0) - radius - 4
    room = np.minimum(room, gap)


def _paint_kidneys(c: shapes.Canvas, patient: _Patient, rng: np.random.Generator) -> None:
  """In perirenal fat: cortex and medulla around the sinus, which is fat and is no kidney."""
  hu = patient.hu
  for name, side in _SIDES.items():
    center, radii, _ = blob = patient.blobs[name]
    box = c.blob_box(blob)
    p = c.at(box)
    kidney = shapes.ellipsoid(p, blob) + shapes.waves(rng, 1.0, 40.0)(p)
    hilum = np.add(center, np.multiply(radii, (-0.75 * side, 0.35, 0)))
    sinus, pelvis = (
      shapes.ellipsoid(p, (hilum, np.multiply(radii, share), (0, 0, 0)))
      for share in ((0.75, 0.42, 0.5), (0.5, 0.2, 0.26))
    )
    sinus += shapes.waves(rng, 1.5, 22.0)(p)
    c.paint(box, kidney - 5, hu['fat'])
    c.paint(box, shapes.smooth_max(4.0, kidney, -sinus), hu['cortex'], _CODES[name])
    pyramids = kidney + 7 + shapes.waves(rng, 2.0, 24.0, 6)(p)
    c.paint(box, shapes.smooth_max(3.0, pyramids, -sinus), hu['medulla'], None)
    c.paint(box, pelvis, hu['renal pelvis'])


def _paint_cyst(c: shapes.Canvas, patient: _Patient, rng: np.random.Generator) -> None:
  """A cyst that bulges from one kidney, away from its hilum."""
  name = tuple(_SIDES)[rng.integers(2)]
  center, radii, _ = patient.blobs[name]
  radius = rng.uniform(8, 18)
  way = rng.uniform((0.3, -1, -1), (1, 0.6, 1)) * (_SIDES[name], 1, 1)
  room = np.subtract(radii, 0.3 * radius)
  center = np.add(center, way / np.linalg.norm(way / room))
  blob = (center, radius * rng.uniform(0.95, 1.05, 3), (0, 0, 0))
  box = c.blob_box(blob)
  distance = np.maximum(shapes.ellipsoid(c.at(box), blob), atlas.cavity(c.at(box)) + 1)
  c.paint(box, distance, patient.hu['cyst'], _CYST_CODES[name])


def _paint_hollow(
  c: shapes.Canvas,
  patient: _Patient,
  rng: np.random.Generator,
  tubes: Sequence[np.ndarray],
  *,
  gas: float,
  stool: float,
  organ: str = 'bowel',
) -> None:
  """A wall around fluid mixed with `stool` HU; gas above a level `gas` mm over the axis."""
  box, distance, axis_y = c.tube(tubes)
  p = c.at(box)
  distance += shapes.waves(rng, 1.5, 35.0)(p)
  c.paint(box, distance, patient.hu['wall'], _CODES.get(organ, 0))
  distance += 2.5
  content = patient.hu[organ] + shapes.waves(rng, stool, 14.0, 14)(p)
  c.paint(box, distance, content, None)
  level = axis_y + gas + shapes.waves(rng, 4.0, 90.0)(p) - p[1]
  c.paint(box, np.maximum(distance, level), patient.hu['air'], None)


def _paint_bowel(c: shapes.Canvas, patient: _Patient, rng: np.random.Generator) -> None:
  loops = []
  for _ in range(3):
    walk = rng.uniform((-62, 14, -122, 11), (66, 66, -70, 15), (11, 4))
    loops.append(shapes.curve(walk, 12.0))
  _paint_hollow(c, patient, rng, loops, gas=rng.uniform(10, 15), stool=8)
  for name in ('right colon', 'transverse colon', 'left colon', 'rectum'):
    tube = patient.tubes[name].copy()
    tube[:, 3] *= 1 + 0.13 * np.sin(np.arange(len(tube)) * 2.4)  # haustra
    _paint_hollow(c, patient, rng, [tube], gas=rng.uniform(-6, 14), stool=rng.uniform(10, 60))
  _paint_hollow(c, patient, rng, [patient.tubes['duodenum']], gas=8, stool=5)
  gas, stool = rng.uniform(4, 16), rng.uniform(3, 14)
  stomach = [patient.tubes['stomach']]
  _paint_hollow(c, patient, rng, stomach, gas=gas, stool=stool, organ='stomach')


def _paint_abdomen(c: shapes.Canvas, patient: _Patient, rng: np.random.Generator) -> None:
  """From the back to the front of the painting: what comes later cuts into what came before."""
  hu, blobs = patient.hu, patient.blobs
  box, distance, _ = c.tube(shapes.tree(rng, (4, 10, -50), (0.1, 0.6, -1), (22, 3.0, 6)))
  c.paint(box, np.maximum(distance, atlas.cavity(c.at(box)) + 3), hu['portal vein'])  # mesentery
  liver = _paint_liver(c, patient, rng)
  box = c.blob_box(blobs['spleen'])
  p = c.at(box)
  spleen = shapes.ellipsoid(p, blobs['spleen']) + shapes.waves(rng, 2.0, 60.0)(p)
  spleen = shapes.smooth_max(8.0, spleen, atlas.cavity(p) + 4, atlas.diaphragm(p) + 3)
  c.paint(box, spleen, hu['spleen'], _CODES['spleen'])
  _paint_bowel(c, patient, rng)
  _paint_kidneys(c, patient, rng)
  _paint_tubes(c, patient, 'postcava', 'left renal vein', 'postcava')
  _paint_tubes(c, patient, 'aorta', 'right iliac', 'left iliac', 'renal arteries')
  _paint_tubes(c, patient, 'aorta', 'aorta', code=_CODES['aorta'])
  box, distance, _ = c.tube([patient.tubes['pancreas']])
  distance += shapes.waves(rng, 1.5, 15.0, 8)(c.at(box))
  c.paint(box, distance, hu['pancreas'], _CODES['pancreas'])
  _paint_tubes(c, patient, 'portal vein', 'portal vein', 'splenic vein')
  for name, wall in (('gallbladder', 2), ('prostate', 0), ('bladder', 2)):
    box = c.blob_box(blobs[name])
    distance = shapes.ellipsoid(c.at(box), blobs[name])
    c.paint(box, distance - wall, hu['wall'])
    c.paint(box, distance, hu[name], _CODES.get(name, 0))
  if rng.uniform() >= _ABSENT:
    _paint_tumors(c, patient, liver, rng)
  if rng.uniform() >= _ABSENT:
    _paint_cyst(c, patient, rng)


def _scan(c: shapes.Canvas, noise_hu: float, rng: np.random.Generator) -> np.ndarray:
  """The scanner's point spread and its correlated noise, stronger deep in the body; int16 HU."""
  from scipy import ndimage  # slow to import

  image = ndimage.gaussian_filter(c.image, 1.2 / c.spacing)
  noise = rng.standard_normal(image.shape, np.float32)
  noise = ndimage.gaussian_filter(noise, (0.6, 0.6, 0.4), mode='wrap')
  depth = (-atlas.cavity(c.p) / 60).clip(-0.6, 1)
  image += noise * (noise_hu / noise.std()) * (0.9 + 0.2 * depth)
  return np.round(image.clip(-1024, 3071)).astype(np.int16)


def make_phantom(
  seed: int, *, spacing: Sequence[float] = (4.0, 4.0, 4.0), noise_hu: float = 15.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws the trunk of one synthetic patient, from the middle of the chest to the hips.

  Args:
    seed: decides the patient: the same anatomy at any spacing, the same bytes at the same spacing.
    spacing: (3,) mm per voxel along right, anterior and superior.
    noise_hu: standard deviation of the noise in the body, HU.

  Returns:
    image (D, H, W) int16 HU and codes (D, H, W) uint8, whose axes grow to the patient's right,
    anterior and superior; spacing (3,) float64 mm.

  Raises:
    ValueError: if spacing is not three positive numbers, or noise_hu is negative.
  """
  voxel = np.asarray(spacing, float)
  if voxel.shape != (3,) or not (np.isfinite(voxel) & (voxel > 0)).all():
    raise ValueError(f'spacing {voxel.tolist()}: pass three positive numbers of mm')
  if noise_hu < 0:
    raise ValueError(f'noise_hu {noise_hu}: pass 0 or more HU')
  rng = np.random.default_rng(seed)
  patient = _draw_patient(rng)
  canvas = _new_canvas(patient, voxel)
  _paint_trunk(canvas, patient, rng)
  _paint_chest(canvas, patient, rng)
  _paint_spine(canvas, patient)
  _paint_ribs(canvas, patient)
  _paint_pelvis(canvas, patient)
  _paint_abdomen(canvas, patient, rng)
  return _scan(canvas, noise_hu, rng), canvas.codes, voxel
