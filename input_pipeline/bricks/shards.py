"""ArrayRecord files: of one case while it is prepared, and the shards of a TFDS dataset.

Records are moved from one file to another as they are, neither decoded nor compressed again.
"""

import contextlib
import errno
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from input_pipeline import errors, sources
from input_pipeline.bricks import records
from input_pipeline.files.buckets import is_in_bucket

_SHARD_BYTES = 128 * 2**20


class CaseFile(NamedTuple):
  """The file of one case: where it lies, how many `records` it holds, and its size in bytes."""

  path: epath.Path
  records: int
  bytes: int


def write_records(path: epath.Path, content: Iterable[bytes]) -> None:
  """Writes a file, in one step or not at all.

  Raises:
    OSError: if it cannot be written.
  """
  if is_in_bucket(path):  # ArrayRecord writes to local disks only
    with tempfile.TemporaryDirectory() as folder:
      local = epath.Path(folder) / 'records'
      _write_local(local, content)
      path.write_bytes(local.read_bytes())
    return
  with _in_one_step(path) as temporary:
    _write_local(temporary, content)


def _write_local(path: epath.Path, content: Iterable[bytes]) -> None:
  from array_record.python import array_record_module

  try:
    writer = array_record_module.ArrayRecordWriter(os.fspath(path), 'group_size:1')
    try:
      for record in content:
        writer.write(record)
    finally:
      writer.close()
  except RuntimeError as error:  # its own, where the disk refuses to write
    raise OSError(errno.EIO, errors.one_line(error), os.fspath(path)) from error


def write_bytes(path: epath.Path, content: bytes) -> None:
  """Writes a file, in one step or not at all."""
  if is_in_bucket(path):  # an object of a bucket appears when it is whole
    path.write_bytes(content)
    return
  with _in_one_step(path) as temporary:
    temporary.write_bytes(content)


@contextlib.contextmanager
def _in_one_step(path: epath.Path) -> Iterator[epath.Path]:
  """A file beside `path`, on its disk, which takes its place unless writing fails.

  No two have one name: workers of Beam may write the same case at once.
  """
  temporary = path.with_name(f'{path.name}.{uuid.uuid4().hex[:8]}.part')
  try:
    yield temporary
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def read_records(path: epath.Path) -> Iterator[bytes]:
  """The records of a file in order."""
  from array_record.python import array_record_module

  with contextlib.ExitStack() as stack:
    local = os.fspath(path)
    if is_in_bucket(path):
      folder = stack.enter_context(tempfile.TemporaryDirectory())
      local = os.path.join(folder, 'records')
      path.copy(local)
    reader = array_record_module.ArrayRecordReader(local)
    stack.callback(reader.close)
    for number in range(reader.num_records()):
      yield reader.read([number])[0]


def write_dataset(
  source: sources.Source,
  folder: epath.Path,
  features: Any,
  splits: Mapping[str, Sequence[CaseFile]],
) -> None:
  """Makes a TFDS dataset of case files, its records in the order given.

  Args:
    source: for the metadata.
    folder: of the dataset, which is its version.
    features: TFDS features of the records.
    splits: name -> files of its cases.
  """
  tfds = records.import_tfds()
  folder.mkdir(parents=True, exist_ok=True)
  infos = []
  for split, files in splits.items():
    parts = list(_parts(files))
    for number, part in enumerate(parts):
      name = f'{source.name}-{split}.array_record-{number:05d}-of-{len(parts):05d}'
      write_records(folder / name, (record for file in part for record in read_records(file.path)))
    infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[sum(file.records for file in part) for part in parts],
        num_bytes=sum(file.bytes for file in files),
      )
    )
  # Bricks of a case stay together: a patch touches several of them.
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=features,
    split_infos=infos,
    version=records.VERSION,
    check_data=False,  # it would read by tf.data, which has no ArrayRecord
    description=source.description,
    license=source.licence,
    citation=source.citation,
    disable_shuffling=True,
  )


def _parts(files: Sequence[CaseFile]) -> Iterator[list[CaseFile]]:
  """Runs of files for one shard each."""
  part: list[CaseFile] = []
  size = 0
  for file in files:
    if part and size + file.bytes > _SHARD_BYTES:
      yield part
      part, size = [], 0
    part.append(file)
    size += file.bytes
  yield part
