"""Writes prepared scans: what `bricks` reads.

Two steps. `stage` converts one case to a file of its own, wherever and in whatever order that
happens; what is there already, of the same case and settings, is not made again. `gather` joins
the files of all cases to TFDS shards.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from etils import epath

from input_pipeline import bricks, errors, sources
from input_pipeline.bricks import identity, shards
from input_pipeline.errors import UserError


@dataclasses.dataclass(frozen=True)
class Request:
  """How cases are converted: `spacing` (3,) mm, `brick` edge in voxels, `origin` of the files."""

  spacing: tuple[float, float, float]
  brick: int
  origin: str = ''

  def key(self, case: sources.Case) -> str:
    """Names the case's file: other settings, labels, meanings or files give another name."""
    ranges = sorted(case.slice_ranges.items())
    parts = (case.source, case.name, case.split, case.supervised, ranges)
    described = repr((bricks.VERSION, self, *parts, identity.describe(case.load)))
    return hashlib.sha256(described.encode()).hexdigest()[:24]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What came of a case.

  Attributes:
    key: of `Request`.
    name, split: of the case.
    error: why it was skipped, or ''.
    warnings: of the readers.
    records, bytes: of its file.
    info: fields of `bricks.CaseInfo`, of a training case.
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
def stage(case: sources.Case, *, folder: str, request: Request) -> None:
  """Converts one case to `folder/KEY.array_record` and notes the outcome in `folder/KEY.json`.

  Never raises because of the case: an error is an outcome too, and is tried again by the next run.

  Args:
    case: to read.
    folder: of the case files.
    request: how.
  """
  key = request.key(case)
  found = read_outcome(folder, key)
  if found is not None and not found.error:
    return
  path = _case_file(folder, key)
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    try:
      scan = case.load()
      digest = identity.scan_digest(bricks.to_int16(scan.image))
      # The whole case is converted before any of it is written.
      if case.split == 'train':
        examples, info = _brick_examples(case, scan, digest, request)
        features = brick_features(request.brick)
      else:
        examples, info, features = [_volume_example(case, scan, digest)], None, volume_features()
      records = [features.serialize_example(example) for example in examples]
      if not records:
        raise sources.SourceError('nothing but air')
    except Exception as error:  # whatever is wrong with one case must not cost the others
      outcome = Outcome(key, case.name, case.split, errors.reason(error), source=case.source)
    else:
      shards.write_records(path, records)
      messages = tuple(dict.fromkeys(str(warning.message) for warning in caught))
      size = path.stat().length
      about = (case.name, case.split, '', messages, len(records), size, info, case.source, digest)
      outcome = Outcome(key, *about)
  write_outcome(folder, outcome)


def _case_file(folder: str | os.PathLike, key: str) -> epath.Path:
  return epath.Path(folder) / f'{key}.array_record'


def read_outcome(folder: str | os.PathLike, key: str) -> Outcome | None:
  """What `stage` noted, or None."""
  path = epath.Path(folder) / f'{key}.json'
  return Outcome(**json.loads(path.read_text())) if path.exists() else None


def write_outcome(folder: str | os.PathLike, outcome: Outcome) -> None:
  """Notes an outcome; a case file counts from then on."""
  text = json.dumps(dataclasses.asdict(outcome))
  shards.write_bytes(epath.Path(folder) / f'{outcome.key}.json', text.encode())


def _brick_examples(case, scan, digest: str, request: Request) -> tuple[list[dict], dict]:
  image, codes, offset = bricks.to_spacing(scan, request.spacing)
  found = [
    _brick_example(case, *part, request.spacing) for part in bricks.cut(image, codes, request.brick)
  ]
  info = bricks.CaseInfo(
    case.name,
    case.source,
    case.supervised,
    case.slice_ranges,
    image.shape,
    tuple(offset.tolist()),
    tuple(map(float, scan.geometry.spacing)),
    digest,
  )
  return found, {field: _plain(value) for field, value in vars(info).items()}


def brick_features(brick: int):
  """TFDS features of a training record."""
  features = bricks.import_tfds().features
  cube = (brick, brick, brick)
  return features.FeaturesDict(
    {
      'image': features.Tensor(shape=cube, dtype=np.int16, encoding='zlib'),
      'label': features.Tensor(shape=cube, dtype=np.uint8, encoding='zlib'),
      'case': features.Text(),
      'source': features.Text(),
      'supervised': features.Sequence(features.Text()),
      'position': features.Tensor(shape=(3,), dtype=np.int32),
      'spacing': features.Tensor(shape=(3,), dtype=np.float32),
      'code_voxels': features.Tensor(shape=(256,), dtype=np.int32, encoding='zlib'),
    }
  )


def _brick_example(case, position, image, codes, spacing) -> dict:
  return {
    'image': image,
    'label': codes,
    'case': case.name,
    'source': case.source,
    'supervised': list(case.supervised),
    'position': np.array(position, np.int32),
    'spacing': np.array(spacing, np.float32),
    'code_voxels': np.bincount(codes.ravel(), minlength=256).astype(np.int32),
  }


def volume_features():
  """TFDS features of a held-out scan."""
  features = bricks.import_tfds().features
  return features.FeaturesDict(
    {
      'image': features.Tensor(shape=(None, None, None), dtype=np.int16, encoding='zlib'),
      'label': features.Tensor(shape=(None, None, None), dtype=np.uint8, encoding='zlib'),
      # NOTE: encoded, because a plain float tensor is stored in single precision.
      'affine': features.Tensor(shape=(4, 4), dtype=np.float64, encoding='bytes'),
      'own_shape': features.Tensor(shape=(3,), dtype=np.int32),
      'case': features.Text(doc='JSON: name, source, split, supervised, slice_ranges, digest'),
    }
  )


def _volume_example(case, scan, digest: str) -> dict:
  fields = ('name', 'source', 'split', 'supervised', 'slice_ranges')
  described = {field: _plain(getattr(case, field)) for field in fields} | {'digest': digest}
  return {
    'image': bricks.to_int16(scan.image),
    'label': scan.codes,
    'affine': scan.geometry.affine,
    'own_shape': np.array(scan.geometry.shape, np.int32),
    'case': json.dumps(described),
  }


def _plain(value):
  return dict(value) if isinstance(value, Mapping) else value


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
  request = Request(tuple(spacing), brick)
  with tempfile.TemporaryDirectory() as folder:
    for case in cases:
      stage(case, folder=folder, request=request)
    outcomes = [read_outcome(folder, request.key(case)) for case in cases]
    return gather(source, outcomes, folder, epath.Path(data_dir) / source.name, request)


def gather(
  source: sources.Source,
  outcomes: Sequence[Outcome],
  staged: str | os.PathLike,
  folder: epath.Path,
  request: Request,
) -> Written:
  """Joins case files to bricks with their index, and volumes.

  Args:
    source: where the cases are from.
    outcomes: of the cases, in their order.
    staged: folder of the case files.
    folder: where to write.
    request: that the cases were staged with.

  Raises:
    UserError: if no case could be converted.
  """
  good = [outcome for outcome in outcomes if not outcome.error]
  if outcomes and not good:
    first = outcomes[0]
    raise UserError(f'{source.name}: every case failed, first {first.name}: {first.error}')
  splits = {}
  for outcome in good:
    file = (_case_file(staged, outcome.key), outcome.records, outcome.bytes)
    splits.setdefault(outcome.split, []).append(file)
  train = splits.pop('train', None)
  if train:
    place = folder / 'bricks' / bricks.VERSION
    shards.write_dataset(source, place, brick_features(request.brick), {'train': train})
    _write_index(place, [o.info for o in good if o.split == 'train'], request)
  if splits:
    place = folder / 'volumes' / bricks.VERSION
    ordered = {split: splits[split] for split in sorted(splits)}
    shards.write_dataset(source, place, volume_features(), ordered)
  notes = [dataclasses.asdict(outcome) for outcome in good]
  (folder / bricks.OUTCOMES).write_text(json.dumps(notes))
  done = dict.fromkeys(sorted({outcome.split for outcome in outcomes}), 0)
  for outcome in good:
    done[outcome.split] += 1
  return Written(
    done,
    [(outcome.name, outcome.error) for outcome in outcomes if outcome.error],
    [(outcome.name, message) for outcome in good for message in outcome.warnings],
    sum(records for _, records, _ in train or ()),
  )


def _write_index(folder: epath.Path, infos: Sequence[Mapping], request: Request) -> None:
  """Reads every record back and notes what it holds."""
  records = bricks.data_source(folder, 'train', skip=('image', 'label'))
  number = {info['name']: i for i, info in enumerate(infos)}
  rows = [(number[r['case'].decode()], r['position'], r['code_voxels']) for r in records]
  case, position, code_voxels = zip(*rows, strict=True)
  with tempfile.TemporaryDirectory() as local:
    path = pathlib.Path(local, bricks.INDEX)
    np.savez_compressed(
      path,
      brick=np.int32(request.brick),
      spacing=np.array(request.spacing, np.float64),
      cases=np.array([json.dumps(info) for info in infos]),
      case=np.array(case, np.int32),
      position=np.array(position, np.int32),
      code_voxels=np.array(code_voxels, np.int32),
    )
    (folder / bricks.INDEX).write_bytes(path.read_bytes())


def read_outcomes(folder: epath.Path) -> list[Outcome]:
  """Of the cases of a prepared source, in the order of its records; none where there are none."""
  path = folder / bricks.OUTCOMES
  return [Outcome(**values) for values in json.loads(path.read_text())] if path.exists() else []


def restore(folder: epath.Path, staged: str | os.PathLike, wanted: Iterable[str]) -> None:
  """Takes cases of a prepared source back into case files, undoing `gather`.

  Args:
    folder: the prepared source.
    staged: folder of the case files.
    wanted: keys of the cases to take.
  """
  wanted = set(wanted)
  streams = {}
  for outcome in read_outcomes(folder):
    if outcome.split not in streams:
      streams[outcome.split] = _stream(folder, outcome.split)
    records = [next(streams[outcome.split]) for _ in range(outcome.records)]
    if outcome.key in wanted and read_outcome(staged, outcome.key) is None:
      shards.write_records(_case_file(staged, outcome.key), records)
      write_outcome(staged, outcome)


def _stream(folder: epath.Path, split: str):
  place = folder / ('bricks' if split == 'train' else 'volumes') / bricks.VERSION
  for path in sorted(place.glob(f'*-{split}.array_record-*')):
    yield from shards.read_records(path)
