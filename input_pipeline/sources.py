"""Where scans come from: each source declares its cases, labels, licence and citation.

A source lists its cases without reading an image; `Case.load` reads one. Label maps hold the codes
of `anatomy.py`. Supervision is per case: a class that a case does not label is unknown there, not
absent, and is never trained or scored.
"""

import dataclasses
import functools
import json
import pathlib
import types
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from input_pipeline import labels, phantom, volume
from input_pipeline.anatomy import TEMPLATE


class SourceError(ValueError):
  """A source's files are missing or contradict each other; the message names file and fix."""


@dataclasses.dataclass(frozen=True)
class Scan:
  """One CT with its labels.

  Attributes:
    image: (D, H, W) HU, int16 or float32, canonical axis order.
    codes: (D, H, W) uint8, the label codes of `anatomy.py`.
    geometry: of the scan's own grid.
  """

  image: np.ndarray
  codes: np.ndarray
  geometry: volume.Geometry


@dataclasses.dataclass(frozen=True)
class Case:
  """What is known of a scan before it is read.

  Attributes:
    source: name of its dataset; sampling balances over these.
    name: unique within the source.
    split: 'train', 'validation' or 'test'.
    supervised: classes that the case labels, in the template's order.
    load: reads the scan.
    slice_ranges: class -> (low, high), the heights in mm above the centre of the lowest slice
      between which the class was contoured; a class that is not there: over the whole scan.
  """

  source: str
  name: str
  split: str
  supervised: tuple[str, ...]
  load: Callable[[], Scan]
  slice_ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Source:
  """A dataset, or a family of datasets, that `prepare` can turn into bricks.

  Attributes:
    name: as given to `--source`.
    description, licence, citation: for people, and for the prepared dataset's metadata.
    cases: manual_dir (the folder the user downloaded, or None) -> all cases. Raises SourceError.
  """

  name: str
  description: str
  licence: str
  citation: str
  cases: Callable[[str | None], list[Case]]


def get_source(name: str) -> Source:
  """The source of that name.

  Raises:
    SourceError: if there is none; the message lists the known ones.
  """
  if name not in SOURCES:
    raise SourceError(f'no source is called {name!r}; known: {", ".join(sorted(SOURCES))}')
  return SOURCES[name]


def restrict_table(names: Sequence[str]) -> np.ndarray:
  """How codes look in a dataset that labels only some classes.

  A voxel keeps what the dataset knows about it: where liver is labelled but liver tumor is not, a
  tumor voxel is plain liver; where neither is, it is background.

  Args:
    names: canonical names of the labelled classes.

  Returns:
    (256,) uint8: code -> the code that says least besides the same labelled classes.
  """
  members = TEMPLATE.code_table(TEMPLATE.names())
  labelled = members[:, np.isin(TEMPLATE.names(), names)]
  least = np.argsort(members.sum(1), kind='stable')
  same = (labelled[:, None] == labelled[least]).all(-1)
  table = least[same.argmax(1)].astype(np.uint8)
  table[~labelled.any(1)] = 0
  return table


def _in_template_order(names: Sequence[str]) -> tuple[str, ...]:
  return tuple(sorted(names, key=lambda name: TEMPLATE.get(name).index))


# ---------------------------------------------------------------------------- phantom
# Three datasets as they are in real life: two that contour one organ with its lesions, and a
# multi-organ atlas that knows no lesions. Together they label every class of the phantom in at
# least a third of the training cases, and no case labels everything.
_PHANTOM_DATASETS = {
  'phantom_liver': ('liver', 'liver tumor'),
  'phantom_kidney': ('right kidney', 'left kidney', 'kidney cyst'),
  'phantom_organs': (
    'spleen', 'right kidney', 'left kidney', 'liver', 'stomach', 'aorta', 'pancreas',
    'right lung', 'left lung', 'bladder',
  ),
}  # fmt: skip
_FIRST_VALIDATION_SEED = 1_000_000
_PHANTOM_SPACING = (4.0, 4.0, 4.0)


def phantom_cases(
  *, train: int = 24, validation: int = 6, spacing: Sequence[float] = _PHANTOM_SPACING
) -> list[Case]:
  """A synthetic cohort with partial labels.

  Args:
    train: training cases; they take turns over the datasets.
    validation: validation cases; they label all classes of the phantom.
    spacing: (3,) mm of the scans' own grids.
  """
  cases = []
  for i in range(train):
    source, names = list(_PHANTOM_DATASETS.items())[i % len(_PHANTOM_DATASETS)]
    cases.append(_phantom_case(source, 'train', i, names, spacing))
  for i in range(validation):
    seed = _FIRST_VALIDATION_SEED + i
    cases.append(_phantom_case('phantom', 'validation', seed, phantom.CLASSES, spacing))
  return cases


def _phantom_case(
  source: str, split: str, seed: int, names: Sequence[str], spacing: Sequence[float]
) -> Case:
  load = functools.partial(_load_phantom, seed, tuple(names), tuple(spacing))
  return Case(source, f'{source}_{seed:07d}', split, _in_template_order(names), load)


def _load_phantom(seed: int, names: tuple[str, ...], spacing: tuple[float, ...]) -> Scan:
  image, codes, spacing = phantom.make_phantom(seed, spacing=spacing)
  canonical = volume.to_canonical(image, np.diag([*spacing, 1.0]))
  return Scan(canonical.array, restrict_table(names)[codes], canonical.geometry)


# ---------------------------------------------------------------------------- OpenKBP
_OPENKBP_LABELS = {
  'Brainstem': (1, 'brainstem'),
  'SpinalCord': (2, 'spinal cord'),
  'RightParotid': (3, 'right parotid'),
  'LeftParotid': (4, 'left parotid'),
  'Esophagus': (5, 'esophagus'),
  'Larynx': (6, 'larynx'),
  'Mandible': (7, 'mandible'),
}
# Often contoured over part of the scan only. The others are contoured whole: background beyond
# their first and last slice is reliable.
_OPENKBP_PARTIAL = ('SpinalCord', 'Esophagus')
_TUNE_CASES, _TUNE_SEED = 16, 20261


def openkbp_cases(manual_dir: str | None, *, tune: bool = False) -> list[Case]:
  """The cases of OpenKBP.

  NOTE: the blanked ends of a scan (`blanked_slices`) stay valid background for every class: they
  hold nothing but -1000 HU, no organ is there to be missed.

  Args:
    manual_dir: folder that holds `train/` and `val/`, each with its `dataset.json`.
    tune: leave `val/` alone, and hold out 16 fixed training patients as validation cases instead.

  Raises:
    SourceError: if a folder, an index or an image is missing or malformed.
  """
  if manual_dir is None:
    raise SourceError('openkbp: pass --manual_dir, the folder that holds train/ and val/')
  train = _read_openkbp(pathlib.Path(manual_dir) / 'train', 'train')
  if not tune:
    return train + _read_openkbp(pathlib.Path(manual_dir) / 'val', 'validation')
  order = np.random.default_rng(_TUNE_SEED).permutation(len(train))
  held_out = set(order[:_TUNE_CASES].tolist())
  return [
    dataclasses.replace(case, split='validation') if i in held_out else case
    for i, case in enumerate(train)
  ]


def _read_openkbp(folder: pathlib.Path, split: str) -> list[Case]:
  index = folder / 'dataset.json'
  if not index.is_file():
    raise SourceError(f'{index}: no such file; --manual_dir must hold train/ and val/ of OpenKBP')
  try:
    entries = json.loads(index.read_text())['cases']
    cases = [_openkbp_case(folder, entry, split) for entry in entries]
  except (json.JSONDecodeError, KeyError) as error:
    raise SourceError(f'{index}: not an OpenKBP index ({error!r}); copy it again') from error
  return sorted(cases, key=lambda case: case.name)


def _openkbp_case(folder: pathlib.Path, entry: dict, split: str) -> Case:
  paths = [folder / entry[kind] for kind in ('ct', 'oar')]
  for path in paths:
    if not path.is_file():
      raise SourceError(f'{path}: listed in {folder / "dataset.json"} but missing; copy it again')
  labelled = tuple(entry['labelled_organs'])
  ranges = {
    _OPENKBP_LABELS[organ][1]: _heights(entry, entry['label_slices'][organ])
    for organ in _OPENKBP_PARTIAL
    if organ in labelled
  }
  return Case(
    source='openkbp',
    name=entry['id'],
    split=split,
    supervised=_in_template_order([_OPENKBP_LABELS[organ][1] for organ in labelled]),
    load=functools.partial(_load_openkbp, *paths, labelled),
    slice_ranges=ranges,
  )


def _heights(entry: dict, slices: Sequence[int]) -> tuple[float, float]:
  """First and last index along file axis 2 -> mm, from the lower face to the upper face."""
  step, number = entry['spacing_mm'][2], entry['shape'][2]
  first, last = slices
  if entry['axcodes'][2] == 'I':
    first, last = number - 1 - last, number - 1 - first
  elif entry['axcodes'][2] != 'S':
    raise SourceError(f'{entry["id"]}: axcodes {entry["axcodes"]}; axis 2 must run along I or S')
  return (first - 0.5) * step, (last + 0.5) * step


def _load_openkbp(ct: pathlib.Path, oar: pathlib.Path, labelled: tuple[str, ...]) -> Scan:
  scan, organs = volume.read_image(ct), volume.read_labels(oar)
  if organs.array.shape != scan.array.shape:
    raise SourceError(f'{oar}: shape {organs.array.shape}, but {ct.name} {scan.array.shape}')
  mapping = {}
  for organ in labelled:
    value, name = _OPENKBP_LABELS[organ]
    mapping[value] = TEMPLATE.get(name).index
  return Scan(scan.array, labels.map_codes(organs.array, mapping, name=str(oar)), scan.geometry)


_OPENKBP = Source(
  name='openkbp',
  description='Head and neck planning CT, 187 patients, up to seven organs at risk contoured.',
  licence='MIT',
  citation=(
    'A. Babier, B. Zhang, R. Mahmood, K.L. Moore, T.G. Purdie, A.L. McNiven, T.C.Y. Chan, '
    '"OpenKBP: The open-access knowledge-based planning grand challenge and dataset," '
    'Medical Physics 48, 5549-5561, 2021'
  ),
  cases=openkbp_cases,
)

SOURCES: Mapping[str, Source] = types.MappingProxyType(
  {
    source.name: source
    for source in (
      Source(
        name='phantom',
        description='Synthetic CT of the trunk in three datasets that each label some organs.',
        licence='Apache-2.0',
        citation='',
        cases=lambda manual_dir: phantom_cases(),
      ),
      _OPENKBP,
      dataclasses.replace(
        _OPENKBP,
        name='openkbp_tune',
        description='The training split of OpenKBP, 16 patients of it held out to make choices on.',
        cases=functools.partial(openkbp_cases, tune=True),
      ),
    )
  }
)
