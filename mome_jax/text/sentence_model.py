"""Sentence encoders as Hugging Face publishes them (BERT, MiniLM, MPNet), read by transformers.

Their vectors are made once: nothing here trains, and models run without it.
"""

import contextlib
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from input_pipeline import remarks
from mome_jax.errors import install, reading
from mome_jax.text.vectors import TextVectorError

_MODULES = ('Transformer', 'Pooling', 'Normalize')
_POOLINGS = {'pooling_mode_mean_tokens': 'mean', 'pooling_mode_cls_token': 'cls'}
_TOKENIZERS = ('tokenizer.json', 'vocab.txt', 'vocab.json', 'merges.txt', 'sentencepiece.bpe.model')


class SentenceModel:
  """K texts -> (K, d_t) float32, by the encoder in a folder.

  What `modules.json` says of pooling (mean over the tokens, or the first token) and of unit length
  is done; without that file, the mean as it is.

  Args:
    folder: with `config.json`, weights and tokenizer.
    max_length: tokens; longer texts are cut, with a warning, also those with more than the encoder
      reads.

  Attributes:
    pooling: 'mean' or 'cls'.
    normalize: whether vectors are brought to unit length.
    tokenizer_files: that decide how texts are read.

  Raises:
    TextVectorError: if a file is missing or damaged, or asks for layers that are not here; when it
      is called, if it is a model of another kind.
  """

  def __init__(self, folder: pathlib.Path, max_length: int):
    self._folder, self._max_length = folder, max_length
    self.pooling, self.normalize = read_modules(folder)
    names = (folder / name for name in (*_TOKENIZERS, 'tokenizer_config.json'))
    self.tokenizer_files = [path for path in names if path.is_file()]
    if not any(path.name in _TOKENIZERS for path in self.tokenizer_files):
      raise TextVectorError(f"{folder}: no tokenizer.json; put the model's tokenizer there")

  @functools.cached_property
  def _encode(self) -> Callable[[list[str]], tuple[np.ndarray, np.ndarray]]:
    """Texts -> tokens' vectors (K, T, d_t) float32 and mask (K, T) bool."""
    try:
      import torch
      import transformers
    except ImportError as error:
      raise TextVectorError(
        f'{self._folder}: reading it needs PyTorch and transformers; {install("transformers")}'
      ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    local: dict[str, Any] = {'local_files_only': True, 'trust_remote_code': False}
    with _explained(self._folder):
      tokenizer = transformers.AutoTokenizer.from_pretrained(self._folder, **local)
      model = transformers.AutoModel.from_pretrained(self._folder, **local).float().eval()
      positions = getattr(model.config, 'max_position_embeddings', None) or self._max_length
      length = min(self._max_length, tokenizer.model_max_length, positions)

    def encode(texts):
      with _explained(self._folder), torch.no_grad():
        whole = tokenizer(texts)['input_ids']
        batch = tokenizer(
          texts, padding=True, truncation=True, max_length=length, return_tensors='pt'
        )
        tokens = model(**batch).last_hidden_state.numpy()
        mask = batch['attention_mask'].numpy() > 0
      for text, ids in zip(texts, whole, strict=True):
        if len(ids) > length:
          remarks.tell(f'{text!r} has {len(ids)} tokens and is cut', stacklevel=3)
      return tokens, mask

    return encode

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Embeds some texts."""
    tokens, mask = self._encode(list(texts))
    if self.pooling == 'cls':
      vectors = tokens[:, 0]
    else:
      vectors = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    if self.normalize:
      vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors.astype(np.float32)


@contextlib.contextmanager
def _explained(folder: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except Exception as error:  # whatever transformers raises of damaged files and of other models
    reason = ' '.join(str(error).split())[:200]
    raise TextVectorError(
      f'{folder}: not a sentence encoder that transformers reads ({reason}); take one such as '
      'BERT, MiniLM or MPNet, or a T5'
    ) from error


def model_type(folder: pathlib.Path) -> str:
  """What a folder's `config.json` calls its architecture, such as 't5' or 'bert'; '' if nothing."""
  file = folder / 'config.json'
  if not file.is_file():
    return ''
  return str(_read(file, _is_object).get('model_type', ''))


def read_modules(folder: pathlib.Path) -> tuple[str, bool]:
  """Pooling, and whether vectors have unit length; TextVectorError for what is not known."""
  file = folder / 'modules.json'
  if not file.is_file():
    return 'mean', False
  pooling, normalize = 'mean', False
  for module in _read(file, _are_modules):
    kind = str(module.get('type', '')).rpartition('.')[2]
    if kind not in _MODULES:
      raise TextVectorError(f'{file}: asks for {kind}; known: {", ".join(_MODULES)}')
    if kind == 'Pooling':
      pooling = _read_pooling(folder / module.get('path', '') / 'config.json')
    normalize |= kind == 'Normalize'
  return pooling, normalize


def _read_pooling(file: pathlib.Path) -> str:
  values = _read(file, _is_object)
  written = values.get('pooling_mode')  # as later versions write it
  if isinstance(written, str | list):
    modes = [written] if isinstance(written, str) else list(map(str, written))
  else:
    modes = [
      _POOLINGS.get(name, name.removeprefix('pooling_mode_'))
      for name, value in values.items()
      if name.startswith('pooling_mode_') and value
    ]
  if len(modes) != 1 or modes[0] not in _POOLINGS.values():
    raise TextVectorError(f'{file}: pooling is {" and ".join(modes) or "none"}; known: mean, cls')
  return modes[0]


def _is_object(content: Any) -> bool:
  return isinstance(content, dict)


def _are_modules(content: Any) -> bool:
  whole = lambda module: _is_object(module) and isinstance(module.get('path', ''), str)
  return isinstance(content, list) and all(map(whole, content))


def _read(file: pathlib.Path, fits: Callable[[Any], bool]) -> Any:
  with reading(file, TextVectorError):
    content = json.loads(file.read_text(encoding='utf-8'))
  if not fits(content):
    raise TextVectorError(f"{file}: is {str(content)[:60]!r}, not a model's; fetch it again")
  return content
