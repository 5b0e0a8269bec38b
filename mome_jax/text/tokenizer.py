"""SentencePiece tokenizer with T5's conventions: pad 0, end of sentence 1, unknown 2, no start."""

import os
from collections.abc import Sequence

import numpy as np
import sentencepiece
from etils import epath

from input_pipeline import remarks
from mome_jax import shipped
from mome_jax.errors import UserError

PAD, EOS, UNK = 0, 1, 2
DEFAULT_MODEL = shipped.TEXT / 'tokenizer.model'


class TokenizerError(UserError):
  """A vocabulary or text that cannot be used; the message names the fix."""


class Tokenizer:
  """Turns prompts into token ids.

  Both the small vocabulary that ships with this package and those of published T5 checkpoints
  (`spiece.model`) are read. The sentinels that T5 adds above the file's pieces are not: prompts
  never hold them.
  """

  def __init__(self, model_path: str | os.PathLike[str] = DEFAULT_MODEL):
    """Loads a vocabulary.

    Args:
      model_path: a SentencePiece model file.

    Raises:
      TokenizerError: if there is no such file, it is not a SentencePiece model, or its special ids
        are not T5's.
    """
    path = epath.Path(model_path)
    if not path.is_file():
      raise TokenizerError(
        f'{path}: no tokenizer there; give the path of a SentencePiece model, or leave it out to '
        f'use the built-in vocabulary'
      )
    self._pieces = sentencepiece.SentencePieceProcessor()
    try:
      # The constructor takes an empty file for no file at all.
      self._pieces.LoadFromSerializedProto(path.read_bytes())
    except RuntimeError as error:
      raise TokenizerError(
        f'{path}: not a SentencePiece model, or a truncated one ({error}); fetch it again'
      ) from error
    special = (self._pieces.pad_id(), self._pieces.eos_id(), self._pieces.unk_id())
    if special != (PAD, EOS, UNK):
      raise TokenizerError(
        f'{path}: pad, eos and unk are {special}, T5 has {(PAD, EOS, UNK)}; use a T5 vocabulary or '
        f'train one with python -m mome_jax.text.train_tokenizer'
      )

  @property
  def vocab_size(self) -> int:
    """Pieces in the file; an encoder's `vocab_size` is at least that."""
    return self._pieces.vocab_size()

  def encode(self, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Encodes prompts to rows of one length.

    Every row ends with the end-of-sentence id, also where the text had to be cut (with a warning).

    Args:
      texts: list of K prompts.
      max_length: T, ids per row with the end of sentence; at least 2.

    Returns:
      ids: (K, T) int32, 0 after the end of sentence.
      mask: (K, T) bool, True up to and with the end of sentence.

    Raises:
      TypeError: if texts is one string rather than a list.
      TokenizerError: if there is no prompt, a prompt is empty, or max_length is less than 2.
    """
    if isinstance(texts, str):
      raise TypeError(f'{texts!r}: give a list of prompts, not one string')
    texts = list(texts)
    if not texts:
      raise TokenizerError('no prompts: give at least one, such as "liver"')
    if max_length < 2:
      raise TokenizerError(
        f'max_length {max_length}: needs room for one token and the end of sentence'
      )
    ids = np.full((len(texts), max_length), PAD, np.int32)
    mask = np.zeros((len(texts), max_length), bool)
    for row, text in enumerate(texts):
      pieces = self._pieces.encode(text)
      if not pieces:
        raise TokenizerError(f'prompt {row} is empty ({text!r}): name a structure, such as "liver"')
      if len(pieces) > max_length - 1:
        remarks.tell(
          f'prompt {text!r} has {len(pieces)} tokens and is cut to {max_length - 1}; shorten it or '
          f'raise max_length'
        )
        pieces = pieces[: max_length - 1]
      ids[row, : len(pieces) + 1] = [*pieces, EOS]
      mask[row, : len(pieces) + 1] = True
    return ids, mask
