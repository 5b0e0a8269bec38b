"""Places that are in no file system."""

import os

NO_DISK = 'is in a bucket; give a place on a disk, and copy it from or to the bucket'


def is_in_bucket(path: str | os.PathLike) -> bool:
  """Whether a path is gs://BUCKET/... or the like: no locks, no renamed folders, no free space."""
  return '://' in os.fspath(path)
