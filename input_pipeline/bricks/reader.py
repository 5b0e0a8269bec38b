"""Opens prepared sources: bricks with their index, held-out scans, the settings they came from."""

import collections.abc
import copy
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from input_pipeline import sources
from input_pipeline.anatomy import OUTSIDE_CODE, TEMPLATE, Template
from input_pipeline.bricks import records, voxel_index
from input_pipeline.bricks.command import prepare_command
from input_pipeline.bricks.lasting import LastingFile, NotPreparedError, readable
from input_pipeline.bricks.records import HeldOutCase, Key, VolumeRecord
from input_pipeline.cli import spoken
from input_pipeline.errors import reading, suggest


class RecordSource(Protocol):
  """Records by number, one or several at once."""

  def __len__(self) -> int: ...

  def __iter__(self) -> Iterator[Mapping[str, Any]]: ...

  def __getitem__(self, number: int) -> Mapping[str, Any]: ...

  def __getitems__(self, numbers: Sequence[int]) -> Sequence[Mapping[str, Any]]: ...


class BrickStore:
  """The training bricks of one prepared source.

  Attributes:
    name: of the source.
    brick: voxels along an edge.
    spacing: (3,) mm.
    cases: C CaseInfo.
    datasets: that they are of; of a `part`, those of the whole.
    template: of the label codes that `read` gives.
    case: (N,) int32; index into `cases` of each record.
    position: (N, 3) int32; first voxel of each record on its case's grid, a multiple of `brick`.
  """

  def __init__(
    self,
    folder: epath.Path,
    name: str,
    *,
    stored: Template = TEMPLATE,
    template: Template | None = None,
  ):
    self.name = name
    self.template = template or stored
    self._translate = _translation(stored, self.template)
    self._index = LastingFile(folder / records.INDEX)
    with readable(self._index.path), self._load_index() as arrays:
      self.brick = int(arrays['brick'])
      self.spacing = tuple(arrays['spacing'].tolist())
      self.cases = [records.read_case(text) for text in arrays['cases'].tolist()]
      self.datasets = frozenset(case.source for case in self.cases)
      self.case, self.position = arrays['case'], arrays['position']
    self._folder, self._numbers = folder, np.arange(len(self.case))
    self._records = data_source(folder, 'train', skip=('code_voxels',))

  def __len__(self) -> int:
    return len(self.case)

  def part(self, cases: Collection[tuple[str, str]]) -> 'BrickStore':
    """The bricks of some cases alone, each given by its source and name."""
    kept = [i for i, case in enumerate(self.cases) if case.key in cases]
    number = np.full(len(self.cases), -1, np.int32)
    number[kept] = np.arange(len(kept))
    records_kept = np.flatnonzero(number[self.case] >= 0)
    part = copy.copy(self)
    part.cases = [self.cases[i] for i in kept]
    part.case, part.position = number[self.case[records_kept]], self.position[records_kept]
    part._numbers = self._numbers[records_kept]
    return part

  def digest(self) -> str:
    """Sha-256 of the index: which scans the source has, their grids, and what is labelled where.

    The same wherever the files lie, and as earlier versions had it.
    """
    digest = hashlib.sha256()
    with readable(self._index.path), self._load_index() as arrays:
      count = len(arrays['case'])
      for name in sorted({*arrays.files, voxel_index.DENSE} - {*voxel_index.NAMES}):
        if name == voxel_index.DENSE:
          digest.update(repr((name, (count, 256), np.dtype(np.int32).str)).encode())
          for part in voxel_index.dense_bytes(arrays, count):
            digest.update(part)
        else:
          array = arrays[name]
          digest.update(repr((name, array.shape, array.dtype.str)).encode() + array.tobytes())
    return digest.hexdigest()

  def _load_index(self):
    return np.load(io.BytesIO(self._index.read()))

  def read(self, record: int) -> tuple[np.ndarray, np.ndarray]:
    """One brick; safe to call from several threads.

    Args:
      record: 0..N-1.

    Returns:
      image (brick, brick, brick) int16 HU, label (brick, brick, brick) uint8 codes; read-only.
    """
    return self.read_all([record])[0]

  def read_all(self, numbers: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Several bricks by one request to the disk or server; each as of `read`.

    Raises:
      NotPreparedError: if they are damaged, or not those of the index any more.
    """
    with self._index.reading_records(self._folder):
      examples = self._records.__getitems__([int(self._numbers[number]) for number in numbers])
      for number, example in zip(numbers, examples, strict=True):
        self._check_is(number, example)
    return [(example['image'], self._translate(example['label'])) for example in examples]

  def _check_is(self, number: int, example: Mapping[str, Any]) -> None:
    """ValueError if an example is another brick than the index says."""
    case = self.cases[self.case[number]]
    expected = [case.source, case.name, self.position[number].tolist()]
    expected += [list(case.supervised), np.array(self.spacing, np.float32).tolist()]
    stored = [example['source'].decode(), example['case'].decode(), example['position'].tolist()]
    stored += [[name.decode() for name in example['supervised']], example['spacing'].tolist()]
    if stored != expected:
      raise ValueError(f'it holds a brick of {stored}, not of {expected}')

  @property
  def tells_outside(self) -> bool:
    """Whether the codes tell what is outside the patient; those of earlier versions do not."""
    with readable(self._index.path), self._load_index() as arrays:
      _, code, _ = voxel_index.entries(arrays)
    return OUTSIDE_CODE in code

  def class_voxels(self, names: Sequence[str]) -> np.ndarray:
    """How much of each class every brick holds.

    Args:
      names: K class names.

    Returns:
      (N, K) int64 voxels; 0 where the case does not supervise the class.
    """
    with readable(self._index.path), self._load_index() as arrays:
      record, code, count = voxel_index.entries(arrays)
      place = np.full(len(arrays['case']), -1, np.int32)
    place[self._numbers] = np.arange(len(self))
    table = self._translate(np.arange(256, dtype=np.uint8))
    of_class = self.template.code_table(names)[table]
    row = place[record]
    counts = np.zeros((len(self), len(names)), np.int64)
    for k, name in enumerate(names):
      some = of_class[code, k] & (row >= 0)
      supervised = np.array([name in case.supervised for case in self.cases])
      voxels = np.bincount(row[some], weights=count[some], minlength=len(self))
      counts[:, k] = voxels * supervised[self.case]
    return counts


class _Chosen(collections.abc.Sequence):
  """Some of the held-out scans of a source, under other splits."""

  def __init__(
    self,
    volumes: '_Volumes',
    chosen: Sequence[tuple[int, HeldOutCase]],
    outcomes: LastingFile,
  ):
    self._volumes, self._chosen, self._outcomes = volumes, chosen, outcomes

  def __len__(self) -> int:
    return len(self._chosen)

  def __getitem__(self, index: int) -> VolumeRecord:  # type: ignore[override]  # no slices
    number, case = self._chosen[index]
    with self._outcomes.reading_records(self._volumes.folder):
      record = self._volumes[number]
      stored = record.source, record.name, record.digest
      if stored != (case.source, case.name, case.digest):
        raise ValueError(f'{case.source} {case.name} was expected, not {stored[0]} {stored[1]}')
    return dataclasses.replace(record, split=case.split)


class _Volumes(collections.abc.Sequence):
  """The held-out scans of one prepared source, read one at a time."""

  def __init__(self, folder: epath.Path, translate: Callable[[np.ndarray], np.ndarray]):
    self.folder, self._translate = folder, translate
    self._parts: list[tuple[str, RecordSource]] = []
    if folder.is_dir():
      with readable(folder):
        splits = records.import_tfds().builder_from_directory(folder).info.splits
      self._parts = [(split, data_source(folder, split)) for split in sorted(splits)]

  def __len__(self) -> int:
    return sum(len(part) for _, part in self._parts)

  def __getitem__(self, index: int) -> VolumeRecord:  # type: ignore[override]  # no slices
    index = range(len(self))[index]
    for split, part in self._parts:
      if index < len(part):
        with readable(self.folder):
          record = records.read_volume(part[index], split)
        return dataclasses.replace(record, codes=self._translate(record.codes))
      index -= len(part)
    raise IndexError(index)


def read_template(
  data_dir: str | os.PathLike,
  source_names: Sequence[str],
  new_classes: Iterable[Mapping[str, Any]] = (),
  *,
  options: Sequence[str] = (),
) -> Template:
  """The template of a run: the built-in classes, those of its prepared sources, and further ones.

  Args:
    data_dir: of the prepared sources.
    source_names: that the run reads.
    new_classes: as `Template.extend` takes them; they come first, so that their prompts and indices
      win where a source declares the same name.
    options: of `prepare`, of `command.suited_to`, which a source that is not there has to be
      prepared with.

  Raises:
    NotPreparedError: if a source is not prepared.
    ClassError: if two of them contradict each other.
  """
  template = TEMPLATE.extend(new_classes)
  for source in source_names:
    declared = {entry['name'] for entry in template.additions()}
    for entry in _stored_classes(data_dir, source, options):
      # An index is the source's own affair: its codes are translated on reading.
      drop = ('index', 'prompt', 'noun') if entry['name'] in declared else ('index',)
      template = template.extend([{k: v for k, v in entry.items() if k not in drop}])
  return template


def open_bricks(
  data_dir: str | os.PathLike,
  source: str,
  template: Template | None = None,
  held_out: Collection[Key] | None = None,
) -> BrickStore:
  """The training bricks of a prepared source.

  Args:
    data_dir: of the prepared sources.
    source: name of one of them.
    template: whose codes to give, from `read_template`; by default the source's own.
    held_out: cases of the pool that are not trained on, from `folds.held_out`; None: those that the
      preparation held out.

  Raises:
    NotPreparedError: if it is not prepared, or has no training cases.
  """
  prepared, settings = _prepared(data_dir, source)
  folder = prepared / 'bricks' / records.VERSION
  if not folder.is_dir():
    skipped = settings.get('skipped')
    reason = (
      f'every one was skipped, see {records.SETTINGS}' if skipped else 'it was prepared without any'
    )
    raise NotPreparedError(f'{folder}: no training cases of {source}; {reason}')
  stored = TEMPLATE.extend(_stored_classes(data_dir, source))
  store = BrickStore(folder, source, stored=stored, template=template)
  assigned = _assigned(settings)
  if held_out is None and assigned:
    return store.part({key for key, split in assigned.items() if split == 'train'})
  if held_out is not None:
    pool_cases(data_dir, source)  # raises where there is none
    return store.part(set(assigned) - set(held_out))
  return store


def open_volumes(
  data_dir: str | os.PathLike,
  source: str,
  template: Template | None = None,
  held_out: Collection[Key] | None = None,
) -> Sequence[VolumeRecord]:
  """The validation and test scans of a prepared source; empty where it has none.

  Args:
    data_dir: of the prepared sources.
    source: name of one of them.
    template: whose codes to give, from `read_template`; by default the source's own.
    held_out: see `held_out_cases`.

  Raises:
    NotPreparedError: if it is not prepared.
  """
  stored = TEMPLATE.extend(_stored_classes(data_dir, source))
  translate = _translation(stored, template or stored)
  folder, _ = _prepared(data_dir, source)
  outcomes = LastingFile(folder / records.OUTCOMES)
  outcomes.read()
  volumes = _Volumes(folder / 'volumes' / records.VERSION, translate)
  return _Chosen(volumes, _choose(data_dir, source, held_out), outcomes)


def held_out_cases(
  data_dir: str | os.PathLike, source: str, held_out: Collection[Key] | None = None
) -> list[HeldOutCase]:
  """The scans of `open_volumes`, in its order, without reading them.

  Args:
    data_dir: of the prepared sources.
    source: name of one of them.
    held_out: cases of the pool that are not trained on, from `folds.held_out`, which then are the
      validation scans; None: those that the preparation held out.

  Raises:
    NotPreparedError: if the source is not prepared.
  """
  return [case for _, case in _choose(data_dir, source, held_out)]


def pool_cases(data_dir: str | os.PathLike, source: str) -> list[HeldOutCase]:
  """The cases that folds are drawn from: all but the test cases.

  Raises:
    NotPreparedError: if the source is not prepared, or without `--folds`.
  """
  folder, settings = _prepared(data_dir, source)
  if not _assigned(settings):
    raise NotPreparedError(
      f'{folder}: prepared without folds; run {prepare_command(data_dir, source, settings)} '
      '--folds, which adds every case in the other form, for training and for scoring'
    )
  return [case for case in _listed(folder) if case.split == records.POOL]


def _listed(folder: epath.Path) -> list[HeldOutCase]:
  """The whole scans of a prepared source in the order of their records."""
  fields = [field.name for field in dataclasses.fields(HeldOutCase)]
  with readable(folder / records.OUTCOMES):
    cases = json.loads((folder / records.OUTCOMES).read_text(encoding='utf-8'))
    described = [HeldOutCase(*(case[f] for f in fields)) for case in cases]
  return sorted((c for c in described if c.split != 'train'), key=lambda case: case.split)


def _choose(
  data_dir: str | os.PathLike, source: str, held_out: Collection[Key] | None
) -> list[tuple[int, HeldOutCase]]:
  """Number and description, with the split it counts for, of each scan that is not trained on."""
  folder, settings = _prepared(data_dir, source)
  assigned = _assigned(settings)
  chosen = []
  for number, case in enumerate(_listed(folder)):
    key, split = case.key, case.split
    if split == records.POOL:
      split = assigned[key]
      if held_out is not None:
        split = 'validation' if key in held_out else 'train'
    elif held_out is not None and split == 'validation':
      pool_cases(data_dir, source)  # raises: such a source has no pool
    if split != 'train':
      chosen.append((number, dataclasses.replace(case, split=split)))
  return sorted(chosen, key=lambda pair: pair[1].split)


def _assigned(settings: Mapping[str, Any]) -> dict[Key, str]:
  """Source and name -> split, of the cases of a pool; empty where there is none."""
  return {(source, name): split for source, name, split in settings.get('assigned', ())}


def read_patients(data_dir: str | os.PathLike, source: str) -> dict[tuple[str, str], str]:
  """(source, case) -> patient, of the cases whose patient `dedupe` or their source knows.

  Raises:
    NotPreparedError: if the source is not prepared.
  """
  _, settings = _prepared(data_dir, source)
  return {(of, name): patient for of, name, patient in settings.get('patients', ())}


def _stored_classes(
  data_dir: str | os.PathLike, source: str, options: Sequence[str] = ()
) -> list[dict]:
  _, settings = _prepared(data_dir, source, options)
  return settings.get('new_classes', [])


def _translation(stored: Template, template: Template) -> Callable[[np.ndarray], np.ndarray]:
  """Label codes of one template -> those of another."""
  table = stored.translation(template)
  if np.array_equal(table, np.arange(256)):
    return lambda codes: codes
  return lambda codes: table[codes]


def read_settings(data_dir: str | os.PathLike, source: str) -> dict | None:
  """What `prepare` left in SETTINGS, or None if the source is not prepared completely."""
  path = epath.Path(data_dir) / source / records.SETTINGS
  with reading(path, NotPreparedError):
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else None


def prepared_sources(data_dir: str | os.PathLike) -> list[str]:
  """Names of the sources that are prepared completely."""
  return sorted(path.parent.name for path in epath.Path(data_dir).glob(f'*/{records.SETTINGS}'))


def training_sources(data_dir: str | os.PathLike) -> list[str]:
  """Those of `prepared_sources` that have training cases; NotPreparedError if there is none."""
  names = prepared_sources(data_dir)
  names = [name for name in names if (epath.Path(data_dir) / name / 'bricks').is_dir()]
  if not names:
    first = spoken('run python -m input_pipeline.prepare first')
    raise NotPreparedError(f'{data_dir}: holds no prepared source with training cases; {first}')
  return names


def _prepared(
  data_dir: str | os.PathLike, source: str, options: Sequence[str] = ()
) -> tuple[epath.Path, dict]:
  """The folder of a prepared source, and its settings.

  Args:
    data_dir: of the prepared sources.
    source: name of one of them.
    options: see `read_template`.

  Raises:
    NotPreparedError: if it is not there, or of another version.
  """
  settings = read_settings(data_dir, source)
  folder = epath.Path(data_dir) / source
  if settings is None:
    command = prepare_command(data_dir, source, None, *options)
    known = {*prepared_sources(data_dir), *sources.SOURCES}
    hint = '' if source in known else suggest(source, sorted(known)).partition('known:')[0]
    hint = hint or f'run {command}, or correct data_dir if it is prepared elsewhere'
    raise NotPreparedError(f'{folder}: not prepared; {hint}')
  with readable(folder / records.SETTINGS):
    version = settings['settings']['version']
  if version != records.VERSION:
    command = prepare_command(data_dir, source, settings, '--overwrite')
    raise NotPreparedError(f'{folder}: version {version}, need {records.VERSION}; run {command}')
  return folder, settings


def data_source(folder: epath.Path, split: str, *, skip: Sequence[str] = ()) -> RecordSource:
  """Random access to the records of a split; the fields in `skip` are not decoded."""
  tfds = records.import_tfds()
  decoders = {field: tfds.decode.SkipDecoding() for field in skip}
  with readable(folder):
    return tfds.builder_from_directory(folder).as_data_source(split=split, decoders=decoders)
