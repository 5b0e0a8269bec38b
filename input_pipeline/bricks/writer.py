"""Writes prepared scans: what `bricks` reads.

Two steps. `stage` converts one case to a file of its own, wherever and in whatever order that
happens; what is there already, of the same case and settings, is not made again. `gather` joins
the files of all cases to TFDS shards.
"""

import dataclasses
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from input_pipeline import errors, remarks, sources
from input_pipeline.bricks import cutting, identity, reader, records, shards, voxel_index


@dataclasses.dataclass(frozen=True)
class Conversion:
  """How cases are converted: `spacing` (3,) mm, `brick` edge in voxels, `origin` of the files."""

  spacing: tuple[float, float, float]
  brick: int
  origin: str = ''

  def key(self, case: sources.Case) -> str:
    """Names the case's file: other settings, labels, meanings or files give another name."""
    ranges = sorted(case.slice_ranges.items())
    parts: tuple = (case.source, case.name, case.split, case.supervised, ranges)
    parts += (('absent', *case.absent),) if case.absent else ()
    # Bricks tell what is not in the patient, and labels do not move where voxels are equally near.
    parts += ('outside', 'ties in turn') if case.split == 'train' else ()
    # NOTE: not a word of these may change, or every user's scans are converted again.
    how = f'Request(spacing={self.spacing!r}, brick={self.brick!r}, origin={self.origin!r})'
    texts = (repr(records.VERSION), how, *map(repr, (*parts, identity.describe(case.load))))
    described = f'({", ".join(texts)})'
    return hashlib.sha256(described.encode()).hexdigest()[:24]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What came of a case.

  Attributes:
    key: of `Conversion`.
    name, split: of the case.
    error: why it was skipped, or ''.
    warnings: of the readers.
    records, bytes: of its file.
    info: fields of `records.CaseInfo`, of a training case.
    source: of the case.
    digest: of the scan, see `identity.scan_digest`.
  """

  key: str
  name: str
  split: str
  error: str = ''
  warnings: Sequence[str] = ()
  records: int = 0
  bytes: int = 0
  info: Mapping | None = None
  source: str = ''
  digest: str = ''


@dataclasses.dataclass
class Written:
  """What came of the cases: `done` per split, `skipped` and `warnings` with reasons, `records`."""

  done: dict[str, int]
  skipped: list[tuple[str, str]]
  warnings: list[tuple[str, str]]
  records: int


# ---------------------------------------------------------------------------- one case
def stage(case: sources.Case, *, folder: str, conversion: Conversion) -> None:
  """Converts one case to `folder/KEY.array_record` and notes the outcome in `folder/KEY.json`.

  Never raises because of the case: an error is an outcome too, and is tried again by the next run.

  Args:
    case: to read.
    folder: of the case files.
    conversion: how.
  """
  key = conversion.key(case)
  finished = read_outcome(folder, key)
  if finished is not None and not finished.error:
    return
  path = _case_file(folder, key)
  with remarks.collected() as messages:
    try:
      scan = case.load()
      digest = identity.scan_digest(cutting.to_int16(scan.image))
      # The whole case is converted before any of it is written.
      examples, info = _examples(case, scan, digest, conversion)
      features = _features(case.split, conversion)
      serialized = [features.serialize_example(example) for example in examples]
      if not serialized:
        raise sources.SourceError('nothing but air')
    except Exception as error:  # whatever is wrong with one case must not cost the others
      outcome = Outcome(key, case.name, case.split, errors.reason(error), source=case.source)
    else:
      shards.write_records(path, serialized)
      size = path.stat().length
      about = (
        case.name,
        case.split,
        '',
        tuple(messages),
        len(serialized),
        size,
        info,
        case.source,
        digest,
      )
      outcome = Outcome(key, *about)
  write_outcome(folder, outcome)


def _features(split: str, conversion: Conversion) -> Any:
  training = split == 'train'
  return records.brick_features(conversion.brick) if training else records.volume_features()


def _case_file(folder: str | os.PathLike, key: str) -> epath.Path:
  return epath.Path(folder) / f'{key}.array_record'


def read_outcome(folder: str | os.PathLike, key: str) -> Outcome | None:
  """What `stage` noted, or None."""
  path = epath.Path(folder) / f'{key}.json'
  return Outcome(**json.loads(path.read_text(encoding='utf-8'))) if path.exists() else None


def read_staged(folder: str | os.PathLike, keys: Iterable[str]) -> list[Outcome]:
  """What `stage` noted of cases that it was run on, in their order."""
  outcomes = [read_outcome(folder, key) for key in keys]
  return [outcome for outcome in outcomes if outcome is not None]


def write_outcome(folder: str | os.PathLike, outcome: Outcome) -> None:
  """Notes an outcome; a case file counts from then on."""
  text = json.dumps(dataclasses.asdict(outcome))
  shards.write_bytes(epath.Path(folder) / f'{outcome.key}.json', text.encode())


def _examples(
  case: sources.Case, scan: sources.Scan, digest: str, conversion: Conversion
) -> tuple[list[dict], dict | None]:
  """The records of a case, and of a training case the fields of its `records.CaseInfo`."""
  if case.split != 'train':
    return [records.volume_example(case, scan, cutting.to_int16(scan.image), digest)], None
  image, codes, offset = cutting.to_spacing(scan, conversion.spacing)
  bricks = cutting.cut(image, codes, conversion.brick)
  examples = [records.brick_example(case, *brick, conversion.spacing) for brick in bricks]
  info = records.CaseInfo(
    case.name,
    case.source,
    case.supervised,
    case.slice_ranges,
    image.shape,
    offset,
    tuple(map(float, scan.geometry.spacing)),
    digest,
    case.absent,
  )
  return examples, {field: records.plain(value) for field, value in vars(info).items()}


# ---------------------------------------------------------------------------- all cases
def write(
  source: sources.Source,
  cases: Sequence[sources.Case],
  data_dir: str | os.PathLike,
  *,
  spacing: Sequence[float],
  brick: int,
) -> Written:
  """Stages and gathers the cases of a source under `data_dir/source.name`; see `gather`."""
  conversion = Conversion(cutting.triple(spacing), brick)
  with tempfile.TemporaryDirectory() as folder:
    for case in cases:
      stage(case, folder=folder, conversion=conversion)
    outcomes = read_staged(folder, [conversion.key(case) for case in cases])
    return gather(source, outcomes, folder, epath.Path(data_dir) / source.name, conversion)


def gather(
  source: sources.Source,
  outcomes: Sequence[Outcome],
  staged: str | os.PathLike,
  folder: epath.Path,
  conversion: Conversion,
) -> Written:
  """Joins case files to bricks with their index, and volumes.

  Args:
    source: where the cases are from.
    outcomes: of the cases, in their order.
    staged: folder of the case files.
    folder: where to write.
    conversion: that the cases were staged with.

  Raises:
    SourceError: if no case could be converted.
  """
  good = [outcome for outcome in outcomes if not outcome.error]
  if outcomes and not good:
    first = outcomes[0]
    raise sources.SourceError(
      f'{source.name}: every case failed, first {first.name}: {first.error}'
    )
  splits: dict[str, list[shards.CaseFile]] = {}
  for outcome in good:
    file = shards.CaseFile(_case_file(staged, outcome.key), outcome.records, outcome.bytes)
    splits.setdefault(outcome.split, []).append(file)
  train = splits.pop('train', None)
  if train:
    place = folder / 'bricks' / records.VERSION
    shards.write_dataset(source, place, _features('train', conversion), {'train': train})
    _write_index(place, [o.info for o in good if o.info is not None], conversion)
  if splits:
    place = folder / 'volumes' / records.VERSION
    ordered = {split: splits[split] for split in sorted(splits)}
    shards.write_dataset(source, place, records.volume_features(), ordered)
  notes = [dataclasses.asdict(outcome) for outcome in good]
  (folder / records.OUTCOMES).write_text(json.dumps(notes), encoding='utf-8')
  done = dict.fromkeys(sorted({outcome.split for outcome in outcomes}), 0)
  for outcome in good:
    done[outcome.split] += 1
  skipped = ((outcome.name, outcome.error) for outcome in outcomes if outcome.error)
  warnings = ((outcome.name, message) for outcome in good for message in outcome.warnings)
  return Written(
    done,
    list(dict.fromkeys(skipped)),  # with folds a case has two outcomes
    list(dict.fromkeys(warnings)),
    sum(file.records for file in train or ()),
  )


def _write_index(folder: epath.Path, infos: Sequence[Mapping], conversion: Conversion) -> None:
  """Reads every record back and notes what it holds."""
  stored = reader.data_source(folder, 'train', skip=('image', 'label'))
  number = {info['name']: i for i, info in enumerate(infos)}
  case, position, voxels = [], [], voxel_index.Builder()
  for record in stored:
    case.append(number[record['case'].decode()])
    position.append(record['position'])
    voxels.add(record['code_voxels'])
  arrays: dict[str, Any] = {
    'brick': np.int32(conversion.brick),
    'spacing': np.array(conversion.spacing, np.float64),
    'cases': np.array([json.dumps(info) for info in infos]),
    'case': np.array(case, np.int32),
    'position': np.array(position, np.int32),
    **voxels.arrays(),
  }
  content = io.BytesIO()
  np.savez_compressed(content, **arrays)
  shards.write_bytes(folder / records.INDEX, content.getvalue())


def read_outcomes(folder: epath.Path) -> list[Outcome]:
  """Of the cases of a prepared source, in the order of its records; none where there are none."""
  path = folder / records.OUTCOMES
  if not path.exists():
    return []
  return [Outcome(**values) for values in json.loads(path.read_text(encoding='utf-8'))]


def restore(folder: epath.Path, staged: str | os.PathLike, keys: Iterable[str]) -> None:
  """Takes cases of a prepared source back into case files, undoing `gather`.

  Args:
    folder: the prepared source.
    staged: folder of the case files.
    keys: of the cases to take.

  Raises:
    NotPreparedError: if a shard is missing or damaged; cases of those before it are taken.
  """
  keys = set(keys)
  streams: dict[str, Iterator[bytes]] = {}
  for outcome in read_outcomes(folder):
    if outcome.split not in streams:
      streams[outcome.split] = _stream(folder, outcome.split)
    stored = [next(streams[outcome.split]) for _ in range(outcome.records)]
    if outcome.key in keys and read_outcome(staged, outcome.key) is None:
      shards.write_records(_case_file(staged, outcome.key), stored)
      write_outcome(staged, outcome)


def _stream(folder: epath.Path, split: str) -> Iterator[bytes]:
  """The records of a split; each shard is read whole before the first of it, and is complete."""
  place = folder / ('bricks' if split == 'train' else 'volumes') / records.VERSION
  with reader.readable(place):
    about = records.import_tfds().builder_from_directory(place).info.splits[split]
  for name, length in zip(about.filenames, about.shard_lengths, strict=True):
    with reader.readable(place / name):
      stored = list(shards.read_records(place / name))
      if len(stored) != length:
        raise ValueError(f'{len(stored)} of {length} records')
    yield from stored
