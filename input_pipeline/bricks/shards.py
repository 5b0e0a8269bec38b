"""ArrayRecord files: of one case while it is prepared, and the shards of a TFDS dataset.

Records are moved from one file to another as they are, neither decoded nor compressed again.
"""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence

from etils import epath

from input_pipeline import bricks, sources

_SHARD_BYTES = 128 * 2**20


def write_records(path: epath.Path, records: Iterable[bytes]) -> None:
  """Writes a file, in one step or not at all.

  ArrayRecord writes to local disks only: the file is made there and copied.
  """
  from array_record.python import array_record_module

  with tempfile.TemporaryDirectory() as folder:
    local = os.path.join(folder, 'records')
    writer = array_record_module.ArrayRecordWriter(local, 'group_size:1')
    try:
      for record in records:
        writer.write(record)
    finally:
      writer.close()
    write_bytes(path, epath.Path(local).read_bytes())


def write_bytes(path: epath.Path, content: bytes) -> None:
  """Writes a file, in one step or not at all."""
  temporary = path.with_name(f'{path.name}.{uuid.uuid4().hex[:8]}.part')
  temporary.write_bytes(content)
  temporary.replace(path)


def read_records(path: epath.Path) -> Iterator[bytes]:
  """The records of a file in order."""
  from array_record.python import array_record_module

  with contextlib.ExitStack() as stack:
    local = os.fspath(path)
    if '://' in local:
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
  features,
  splits: Mapping[str, Sequence[tuple[epath.Path, int, int]]],
) -> None:
  """Makes a TFDS dataset of case files, its records in the order given.

  Args:
    source: for the metadata.
    folder: of the dataset, which is its version.
    features: TFDS features of the records.
    splits: name -> (file, number of records, bytes) of each case.
  """
  tfds = bricks.import_tfds()
  folder.mkdir(parents=True, exist_ok=True)
  infos = []
  for split, files in splits.items():
    parts = list(_parts(files))
    for number, part in enumerate(parts):
      name = f'{source.name}-{split}.array_record-{number:05d}-of-{len(parts):05d}'
      records = (record for path, _, _ in part for record in read_records(path))
      write_records(folder / name, records)
    infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[sum(records for _, records, _ in part) for part in parts],
        num_bytes=sum(size for _, _, size in files),
      )
    )
  # Bricks of a case stay together: a patch touches several of them.
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=features,
    split_infos=infos,
    version=bricks.VERSION,
    check_data=False,  # it would read by tf.data, which has no ArrayRecord
    description=source.description,
    license=source.licence,
    citation=source.citation,
    disable_shuffling=True,
  )


def _parts(files: Sequence[tuple[epath.Path, int, int]]) -> Iterator[list]:
  """Runs of files for one shard each."""
  part, size = [], 0
  for file in files:
    if part and size + file[2] > _SHARD_BYTES:
      yield part
      part, size = [], 0
    part.append(file)
    size += file[2]
  yield part
