"""Text vectors made once: prompts, their embeddings, and what they were made from."""

import dataclasses
import functools
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from input_pipeline.cli import spoken
from input_pipeline.files import text_files
from mome_jax.errors import UserError, few

_VERSION = 1  # of the file's layout


class TextVectorError(UserError):
  """Text vectors are missing, damaged or lack a prompt; the message says how to make them."""


def command() -> str:
  """What makes text vectors, as the user calls it."""
  return spoken('python -m mome_jax.text.embed --model=FOLDER --output=FILE.npz')


def unit(vectors: np.ndarray) -> np.ndarray:
  """(..., d) -> the same, each of length 1; zeros stay."""
  return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


@dataclasses.dataclass(frozen=True, eq=False)
class TextVectors:
  """Embeddings of some prompts.

  Attributes:
    prompts: P texts.
    embeddings: (P, d_t) float32.
    source: what made them (model, weights_sha256, tokenizer_sha256, pooling, max_length, ...); with
      the prompts it decides the key.
  """

  prompts: tuple[str, ...]
  embeddings: np.ndarray
  source: Mapping[str, str | int]

  def __post_init__(self):
    if self.embeddings.shape[:1] != (len(self.prompts),) or self.embeddings.ndim != 2:
      raise TextVectorError(
        f'{len(self.prompts)} prompts, embeddings {self.embeddings.shape}: expected one row each'
      )

  @property
  def width(self) -> int:
    """d_t."""
    return self.embeddings.shape[1]

  @property
  def key(self) -> str:
    """Sha-256 of the prompts and of what made the embeddings, 64 hexadecimal digits."""
    return self.key_of(self.prompts, self.source)

  @staticmethod
  def key_of(prompts: Sequence[str], source: Mapping[str, str | int]) -> str:
    """The key of vectors before they are made."""
    identity = {'version': _VERSION, 'source': dict(source), 'prompts': list(prompts)}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

  def __contains__(self, prompt: str) -> bool:
    return prompt in self._rows

  def __call__(
    self, prompts: Sequence[str], fix: str = 'pass --text-model, the folder of the checkpoint'
  ) -> np.ndarray:
    """(K, d_t) float32, the embeddings of K prompts.

    Args:
      prompts: K texts.
      fix: what whoever asks can do about a missing one; by default what a user of `predict` can.

    Raises:
      TextVectorError: if one is not among those embedded.
    """
    missing = [prompt for prompt in prompts if prompt not in self._rows]
    if missing:
      made_by = self.source.get('model', 'unknown')
      fix = f'{fix} that made them ({made_by})'
      if 'weights_sha256' not in self.source:
        fix = f'they are of {made_by}, and nothing can add to them; ask for its classes by name'
      raise TextVectorError(
        f'no vector for {few(map(repr, missing))}: the text vectors are frozen; {fix}'
      )
    return self.embeddings[[self._rows[prompt] for prompt in prompts]]

  @functools.cached_property
  def _rows(self) -> dict[str, int]:
    return {prompt: row for row, prompt in enumerate(self.prompts)}

  def with_others(self, more: 'TextVectors') -> 'TextVectors':
    """These vectors, then those of prompts that only `more`, of the same encoder, has."""
    others = tuple(prompt for prompt in more.prompts if prompt not in self)
    rows = np.concatenate([self.embeddings, more(others)]) if others else self.embeddings
    return TextVectors(self.prompts + others, rows, self.source)

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes the `.npz` file in one step; OSError if it cannot be written."""
    file = io.BytesIO()
    np.savez_compressed(
      file,
      prompts=np.array(self.prompts),
      embeddings=self.embeddings.astype(np.float32),
      source=json.dumps(dict(self.source)),
      key=self.key,
    )
    text_files.replace(path, file.getvalue())

  @classmethod
  def load(cls, path: str | os.PathLike[str]) -> 'TextVectors':
    """Reads what `save` wrote.

    Raises:
      TextVectorError: if there is no such file, it is damaged, or its contents are not those that
        its key was made from.
    """
    try:
      with epath.Path(path).open('rb') as file, np.load(file) as arrays:
        source = json.loads(str(arrays['source']))
        vectors = cls(tuple(arrays['prompts'].tolist()), arrays['embeddings'], source)
        key = str(arrays['key'])
    except FileNotFoundError as error:
      raise TextVectorError(f'{path}: no such file; make it with {command()}') from error
    except Exception as error:  # NumPy, zipfile and zlib each raise their own
      raise TextVectorError(f'{path}: no text vectors; make them with {command()}') from error
    if vectors.key != key:
      raise TextVectorError(f'{path}: does not match its key {key[:12]}; make it with {command()}')
    return vectors
