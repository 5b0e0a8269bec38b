"""Writes prepared scans: what `bricks` reads."""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import pathlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from input_pipeline import bricks, sources


@dataclasses.dataclass
class Written:
  """What came of the cases: `done` per split, `skipped` and `warnings` with reasons, `infos`."""

  done: dict[str, int] = dataclasses.field(default_factory=dict)
  skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  warnings: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  infos: list[bricks.CaseInfo] = dataclasses.field(default_factory=list)
  records: int = 0


def write(
  source: sources.Source,
  cases: Sequence[sources.Case],
  data_dir: pathlib.Path,
  *,
  spacing: Sequence[float],
  brick: int,
  on_case: Callable[[str], None] = lambda name: None,
) -> Written:
  """Writes bricks, their index and volumes under `data_dir/source.name`.

  A case that cannot be read or converted is skipped and reported.

  Args:
    source: where the cases are from.
    cases: to write.
    data_dir: of the prepared sources.
    spacing: (3,) mm of the bricks.
    brick: edge of the bricks, voxels.
    on_case: called with a case's name after it.

  Raises:
    ValueError: if no case could be written.
  """
  written = Written(done=dict.fromkeys(sorted({case.split for case in cases}), 0))
  train = [case for case in cases if case.split == 'train']

  def examples(cases, convert):
    number = itertools.count()
    for case in cases:
      # The whole case is converted before any of it is written.
      try:
        with warnings.catch_warnings(record=True) as caught:
          warnings.simplefilter('always')
          converted = list(convert(case, case.load()))
        written.warnings += [(case.name, str(warning.message)) for warning in caught]
      except Exception as error:  # whatever is wrong with one case must not cost the others
        written.skipped.append((case.name, f'{type(error).__name__}: {error}'))
      else:
        written.done[case.split] += 1
        yield from ((next(number), example) for example in converted)
      on_case(case.name)
    if not any(written.done[case.split] for case in cases):
      raise ValueError(f'{source.name}: every case failed, first {": ".join(written.skipped[0])}')

  if train:
    convert = functools.partial(_brick_examples, written, spacing, brick)
    splits = {'train': lambda: examples(train, convert)}
    folder = _write_tfds(source, 'bricks', _brick_features(brick), splits, data_dir)
    _write_index(folder, written.infos, spacing, brick)
  splits = {}
  for split in sorted(written.done.keys() - {'train'}):
    part = [case for case in cases if case.split == split]
    splits[split] = functools.partial(examples, part, _volume_examples)
  if splits:
    _write_tfds(source, 'volumes', _volume_features(), splits, data_dir)
  return written


def _brick_examples(written: Written, spacing, brick, case, scan) -> list[dict]:
  image, codes, offset = bricks.to_spacing(scan, spacing)
  found = [_brick_example(case, *part, spacing) for part in bricks.cut(image, codes, brick)]
  offset = tuple(offset.tolist())
  written.infos.append(
    bricks.CaseInfo(case.name, case.source, case.supervised, case.slice_ranges, image.shape, offset)
  )
  written.records += len(found)
  return found


def _brick_features(brick: int):
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


def _volume_features():
  features = bricks.import_tfds().features
  return features.FeaturesDict(
    {
      'image': features.Tensor(shape=(None, None, None), dtype=np.int16, encoding='zlib'),
      'label': features.Tensor(shape=(None, None, None), dtype=np.uint8, encoding='zlib'),
      # NOTE: encoded, because a plain float tensor is stored in single precision.
      'affine': features.Tensor(shape=(4, 4), dtype=np.float64, encoding='bytes'),
      'own_shape': features.Tensor(shape=(3,), dtype=np.int32),
      'case': features.Text(doc='JSON: name, source, supervised, slice_ranges in mm'),
    }
  )


def _volume_examples(case, scan) -> Iterator[dict]:
  fields = ('name', 'source', 'supervised', 'slice_ranges')
  yield {
    'image': bricks.to_int16(scan.image),
    'label': scan.codes,
    'affine': scan.geometry.affine,
    'own_shape': np.array(scan.geometry.shape, np.int32),
    'case': json.dumps({field: _plain(getattr(case, field)) for field in fields}),
  }


def _plain(value):
  return dict(value) if isinstance(value, Mapping) else value


def _write_tfds(
  source: sources.Source,
  config: str,
  features,
  splits: Mapping[str, Callable[[], Iterable[tuple[int, dict]]]],
  data_dir: pathlib.Path,
) -> pathlib.Path:
  """Writes one TFDS dataset, its records in the order given; returns its folder."""
  tfds = bricks.import_tfds()

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = source.name
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version=bricks.VERSION)]

    def _info(self):
      # Bricks of a case stay together: a patch touches several of them.
      return tfds.core.DatasetInfo(
        builder=self,
        features=features,
        description=source.description,
        license=source.licence,
        citation=source.citation,
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      return {split: generate() for split, generate in splits.items()}

    def _generate_examples(self):
      raise NotImplementedError  # the splits bring their own

  builder = Builder(data_dir=data_dir)
  with contextlib.redirect_stdout(io.StringIO()):  # it announces a download
    builder.download_and_prepare(file_format='array_record')
  return pathlib.Path(builder.data_dir)


def _write_index(
  folder: pathlib.Path, infos: Sequence[bricks.CaseInfo], spacing: Sequence[float], brick: int
) -> None:
  """Reads every record back and notes what it holds."""
  records = bricks.data_source(folder, 'train', skip=('image', 'label'))
  number = {info.name: i for i, info in enumerate(infos)}
  rows = [(number[r['case'].decode()], r['position'], r['code_voxels']) for r in records]
  case, position, code_voxels = zip(*rows, strict=True)
  np.savez_compressed(
    folder / bricks.INDEX,
    brick=np.int32(brick),
    spacing=np.array(spacing, np.float64),
    cases=np.array([json.dumps({k: _plain(v) for k, v in vars(info).items()}) for info in infos]),
    case=np.array(case, np.int32),
    position=np.array(position, np.int32),
    code_voxels=np.array(code_voxels, np.int32),
  )
