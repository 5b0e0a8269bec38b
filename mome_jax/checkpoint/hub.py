"""Models on the Hugging Face Hub: `hf:ORG/NAME`, or `hf:ORG/NAME@REVISION`."""

import functools
import os
import re

from etils import epath

from mome_jax.checkpoint.errors import CheckpointError, brief
from mome_jax.errors import install

PREFIX = 'hf:'
_PATH = re.compile(r'hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?')
_FETCHED = re.compile(r'.*/models--([\w.-]+?)--([\w.-]+)/snapshots/[^/]+')
# What a model or an ensemble consists of: no file that could run code when it is read.
_FILES = ['*.json', '*.safetensors', 'tokenizer.model', '*/tokenizer.model', '*.npz', 'params/*',
          '*/params/*', 'README.md']  # fmt: skip


def is_remote(path: epath.PathLike) -> bool:
  """Whether a path stands for a model on the Hub."""
  return os.fspath(path).startswith(PREFIX)


def name_of(folder: epath.PathLike) -> str:
  """`hf:ORG/NAME` of a folder as `fetch` gives it, there or not; of any other one ''."""
  match = _FETCHED.fullmatch(os.fspath(folder))
  return f'{PREFIX}{match[1]}/{match[2]}' if match else ''


@functools.cache
def fetch(path: str) -> epath.Path:
  """The folder of the files of a model, in the cache of huggingface_hub; got once.

  Args:
    path: `hf:ORG/NAME`, or `hf:ORG/NAME@REVISION`: a branch, tag or commit. HF_ENDPOINT, HF_HOME,
      HF_TOKEN and HF_HUB_OFFLINE work as with any program that uses the library.

  Raises:
    CheckpointError: if it is no such path, huggingface_hub is not installed, or there is no such
      model, or no connection.
  """
  match = _PATH.fullmatch(path)
  if match is None:
    raise CheckpointError(f'{path}: expected hf:ORG/NAME or hf:ORG/NAME@REVISION')
  try:
    import huggingface_hub
  except ImportError as error:
    raise CheckpointError(
      f'{path}: needs huggingface_hub: {install("huggingface_hub")}, or give a local folder'
    ) from error
  name, revision = match.groups()
  try:
    folder = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_FILES)
  except Exception as error:  # the library, its transport and the disk each raise their own
    raise CheckpointError(
      f'{path}: cannot be fetched ({brief(error)}); check the name and the connection, or '
      'give a local folder'
    ) from error
  return epath.Path(folder)
