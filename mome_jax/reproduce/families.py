"""The dataset families of the benchmark, which of them are here, and what is lost without one."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from input_pipeline import sources
from input_pipeline.files.buckets import NO_DISK, is_in_bucket
from mome_jax.errors import UserError, suggest

# Family -> its sources. These ten are trained on; the paper counts 3,410 scans in ten families.
TRAINED: Mapping[str, tuple[str, ...]] = {
  'BTCV': ('btcv',),
  'Pancreas-CT': ('pancreas_ct',),
  'CHAOS': ('chaos',),
  'LiTS': ('lits',),
  'KiTS': ('kits',),
  'WORD': ('word',),
  'AbdomenCT-1K': ('abdomenct_1k', 'abdomenct_12organ'),
  'AMOS22': ('amos22',),
  'MSD': (
    'msd_liver', 'msd_lung', 'msd_pancreas', 'msd_hepatic_vessel', 'msd_spleen', 'msd_colon',
  ),
  'CT-ORG': ('ct_org',),
}  # fmt: skip
# Scored only, as scans from elsewhere.
EXTERNAL: Mapping[str, tuple[str, ...]] = {
  '3D-IRCADb': ('ircadb',),
  'TotalSegmentator': ('totalsegmentator',),
}
FAMILIES = {**TRAINED, **EXTERNAL}
# Names of the sources, in the order of the families.
TRAINED_SOURCES = tuple(name for members in TRAINED.values() for name in members)
EXTERNAL_SOURCES = tuple(name for members in EXTERNAL.values() for name in members)
SOURCES = (*TRAINED_SOURCES, *EXTERNAL_SOURCES)


class DownloadError(UserError):
  """No download is where it was looked for; the message says where it belongs."""


@dataclasses.dataclass(frozen=True)
class Download:
  """The download of one source.

  Attributes:
    source: its name.
    family: that it belongs to.
    folder: where it lies.
    external: whether it is scored only.
  """

  source: str
  family: str
  folder: pathlib.Path
  external: bool


def find(root: pathlib.Path | None, given: Mapping[str, str]) -> list[Download]:
  """The downloads that are here, in the order of the families.

  Args:
    root: holds a folder for each source, named after it; or None.
    given: source -> folder, of those that lie elsewhere.

  Raises:
    DownloadError: if a source is unknown, a given folder is missing, or there is none to train on.
  """
  for name, folder in given.items():
    if name not in SOURCES:
      raise DownloadError(
        f'--download {name}: no source of the benchmark; {suggest(name, SOURCES)}'
      )
    if is_in_bucket(folder):
      raise DownloadError(f'--download {name}={folder} {NO_DISK}')
    if not pathlib.Path(folder).is_dir():
      raise DownloadError(f'--download {name}={folder}: no such folder; give the one it lies in')
  downloads = []
  for family, members in FAMILIES.items():
    for name in members:
      place = pathlib.Path(given[name]) if name in given else root and root / name
      if place is not None and place.is_dir():
        downloads.append(Download(name, family, place.absolute(), family in EXTERNAL))
  if not any(not download.external for download in downloads):
    raise DownloadError(
      f'{root or "--download"}: none of the folders {", ".join(SOURCES[:4])}, ... is there; put '
      'each download into a folder of its name, or give --download SOURCE=FOLDER (mome '
      'prepare --list tells the names)'
    )
  return downloads


def lost(present: Iterable[str], classes: Sequence[str]) -> list[str]:
  """What the sources that are not here take with them, a line each.

  Args:
    present: names of the sources that are here.
    classes: of the experiment.
  """
  present = set(present)
  labelled = _labelled([name for name in TRAINED_SOURCES if name in present])
  lines = []
  for name in SOURCES:
    if name in present:
      continue
    source = sources.get_source(name)
    scored = rows(name, classes)
    alone = [one for one in scored if one not in labelled]
    effect = f'{source.expected} scans and its {len(scored)} rows of the tables'
    if name in TRAINED_SOURCES and alone:
      effect += f'; nothing here labels {", ".join(alone)}'
    lines.append(f'without {name}: {effect}')
  return lines


def unlabelled(present: Iterable[str], classes: Sequence[str]) -> list[str]:
  """Classes that no source here labels for training."""
  labelled = _labelled([name for name in present if name in TRAINED_SOURCES])
  return [name for name in classes if name not in labelled]


def rows(source: str, classes: Sequence[str]) -> list[str]:
  """The classes of the experiment that a source is scored on."""
  labelled = _labelled([source])
  return [name for name in classes if name in labelled]


def _labelled(names: Iterable[str]) -> set[str]:
  return {name for source in names for name in sources.get_source(source).classes}
