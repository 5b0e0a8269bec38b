"""Places that are in no file system."""

import os


def is_in_bucket(path: str | os.PathLike) -> bool:
  """Whether a path is gs://BUCKET/... or the like: no locks, no renamed folders, no free space."""
  return '://' in os.fspath(path)
