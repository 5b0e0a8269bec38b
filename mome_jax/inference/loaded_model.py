"""A trained model, loaded once and ready for prompts: what evaluation and prediction share."""

import collections
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.anatomy import TEMPLATE
from mome_jax import checkpoint, shipped
from mome_jax.errors import UserError
from mome_jax.inference import steps
from mome_jax.inference.model import Model, Reader
from mome_jax.inference.sights import Sights
from mome_jax.models import build_model
from mome_jax.models.mome import Sight
from mome_jax.runtime import compilation
from mome_jax.text import embed, prompt_inputs
from mome_jax.text.prompts import default_prompts
from mome_jax.text.t5 import build_text_encoder
from mome_jax.text.tokenizer import Tokenizer
from mome_jax.text.vectors import TextVectors
from mome_jax.training import sharding, state

SHIPPED = shipped.MODEL
# What a window needs at most, in terms of the features that are kept of it: a decoder layer holds
# its input beside them, twice as wide, its hidden layers, and the batch that is on its way.
_BESIDE = 8
_AHEAD = 4  # buckets of prompts that are read before the first one's logits are taken


def _bytes(tree: Any) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def windows_that_fit(seen: int, free: int) -> int:
  """Windows a call: a power of two up to 8.

  Args:
    seen: bytes of what a model sees of one window.
    free: bytes of the device.
  """
  fit = free // (2 * _BESIDE * seen)
  return max(n for n in (1, 2, 4, 8) if n <= max(fit, 1))


class Predictor(Model):
  """A model on the devices.

  Prompt lists of any length and scans of any size run through the same two compiled programs.

  Args:
    path: a model folder, a training workdir or one of its `checkpoints/STEP`; default the model
      that comes with the package.
    config: in place of the model's own.
    text_model: folder of the checkpoint that made a frozen model's text vectors, for prompts
      that it has no vector for.
    devices: that hold the model and share the windows of a batch; default all of this host. Models
      on different devices can be used side by side.

  Attributes:
    path: where it came from.
    folder: that holds its `config.json` and what else describes it.
    config: see `configs/base.py`.
    step: of training, or None.
    template: the built-in classes and those that came with the model.
    model: from `build_model`.
    params: {'model': ..., 'text': ...}.
    vectors: of a model with frozen text, or None.
    trained_text: (J, d_t) float32, embeddings of the training classes, where banks need them.
    devices: that hold the model.
    sights: keeps what is seen of windows for further prompts; None, as at first, keeps nothing.

  Raises:
    CheckpointError: if there is no model, or it cannot be read.
  """

  def __init__(
    self,
    path: str | os.PathLike = SHIPPED,
    config: ConfigDict | None = None,
    *,
    text_model: str | os.PathLike | None = None,
    devices: Sequence[jax.Device] | None = None,
  ):
    self.path = os.fspath(path)
    config = config or checkpoint.load_config(path)
    self._mesh = sharding.local_mesh(devices)
    self.devices = list(self._mesh.devices.flat)
    self._everywhere = jax.sharding.NamedSharding(self._mesh, sharding.REPLICATED)
    split = sharding.batch_spec('image', spatial=False)
    self._split = jax.sharding.NamedSharding(self._mesh, split)
    loaded = checkpoint.load_model(path, self._everywhere, config.evaluation.checkpoint)
    self.config, self.step, self.params = config, loaded.step, loaded.params
    self.folder = loaded.folder
    self.template = TEMPLATE.extend(config.new_classes)
    self.model = build_model(config.model)
    self.vectors = None
    if prompt_inputs.is_frozen(config.text):
      encoder, vectors = None, TextVectors.load(loaded.folder / checkpoint.TEXT_VECTORS)
      self.vectors = vectors
      known = embed.Extending(vectors, text_model) if text_model else vectors
      self._inputs = prompt_inputs.frozen(known)
    else:
      if text_model:
        raise UserError(
          f'{path}: has a text encoder of its own; --text-model {text_model} is for models with '
          'frozen text'
        )
      encoder = build_text_encoder(config.text)
      tokenizer = Tokenizer(loaded.folder / checkpoint.TOKENIZER)
      self._inputs = prompt_inputs.joint(tokenizer, config.text.max_length)
    create = functools.partial(state.init_params, config, self.model, encoder)
    with jax.set_mesh(self._mesh):
      checkpoint.check_fit(self.params, jax.eval_shape(create, jax.random.key(0)), path)
    self._embed = jax.jit(functools.partial(prompt_inputs.embeddings, encoder))
    platform = self.devices[0].platform
    self._see = compilation.jit(steps.make_see_step(self.model), platform)
    self._read = compilation.jit(steps.make_read_step(self.model), platform)
    self._known: dict[str, np.ndarray] = {}  # embeddings by prompt
    self.sights: Sights | None = None
    self.trained_text = None
    if self.model.bank is not None:
      trained = default_prompts(config.classes, self.template)
      self.trained_text = self.embed(trained)[: len(trained)]

  def embed(self, prompts: Sequence[str]) -> jax.Array:
    """Embeddings of K prompts and of the empty ones that fill the bucket: (K', d_t) float32.

    Each is made once, and in a batch of one size: how a sum is rounded may depend on the size, and
    so would the last bits of a prompt's vector on how many others are asked for.
    """
    new = [text for text in dict.fromkeys(prompts) if text not in self._known]
    if new:
      padded = prompt_inputs.pad(
        self._inputs(new), -(-len(new) // prompt_inputs.BUCKET) * prompt_inputs.BUCKET
      )
      for n in range(0, len(new), prompt_inputs.BUCKET):
        bucket = {name: array[n : n + prompt_inputs.BUCKET] for name, array in padded.items()}
        with jax.set_mesh(self._mesh):
          rows = self._embed(self.params, jax.device_put(bucket, self._everywhere))
        self._known |= zip(new[n : n + prompt_inputs.BUCKET], np.asarray(rows), strict=False)
    vectors = np.stack([self._known[text] for text in prompts])
    empty = -len(prompts) % prompt_inputs.BUCKET  # the embedding of an empty prompt is zero
    return jax.device_put(np.pad(vectors, [(0, empty), (0, 0)]), self._everywhere)

  @functools.cached_property
  def routing_step(self) -> Callable[..., Any]:
    """`steps.make_routing_step` of the model, compiled once whatever the prompts."""
    return compilation.jit(steps.make_routing_step(self.model), self.devices[0].platform)

  def buckets(self, prompts: Sequence[str]) -> list[jax.Array]:
    """Embeddings (4, d_t) float32 of prompts, four at a time; empty ones fill the last four."""
    vectors = np.asarray(self.embed(prompts))
    return [
      jax.device_put(vectors[n : n + prompt_inputs.BUCKET], self._everywhere)
      for n in range(0, len(vectors), prompt_inputs.BUCKET)
    ]

  def ask(
    self, step: Callable[..., Any], buckets: Sequence[jax.Array], windows: np.ndarray, *batch: Any
  ) -> Iterator[Any]:
    """What a step makes of windows and each bucket of prompts, one after the other.

    The windows are seen once, and each bucket is read by the same program, so that neither its
    logits nor the time to compile depend on how many there are. A few are computed ahead of what
    is taken: the device works on while the host takes them, and never holds all.

    Args:
      step: compiled, of `steps`: of parameters, what was seen, a bucket and the batch.
      buckets: of `buckets`.
      windows: (B, D, H, W, C) float32.
      *batch: arrays, or sequences of them, whose first axis the devices share.
    """
    sight = self._sight(windows) if self.sights is None else self.sights.of(windows, self._sight)
    with jax.set_mesh(self._mesh):
      shared = jax.device_put(batch, self._split)

    def read(text: jax.Array) -> Any:
      with jax.set_mesh(self._mesh):
        return step(self.params, sight, text, *shared)

    ahead = collections.deque(map(read, buckets[:_AHEAD]))

    def rest() -> Iterator[Any]:
      for text in buckets[_AHEAD:]:
        yield ahead.popleft()
        ahead.append(read(text))
      while ahead:
        yield ahead.popleft()

    return rest()

  def _sight(self, windows: np.ndarray) -> Sight:
    with jax.set_mesh(self._mesh):
      batch = jax.device_put(windows, self._split)
      return self._see(self.params, batch, self.trained_text)

  def windows_a_call(self) -> int:
    """Windows that are segmented at a time where `evaluation.batch_size` leaves it open.

    As many as fit into half of the memory that the parameters leave on a device, at most 8 each; 1
    on the CPU, and where the device does not tell. Not of what is free at the moment: how sums
    are rounded may depend on the number, and masks would differ from run to run.
    """
    statistics = None
    if self.devices[0].platform != 'cpu':
      statistics = self.devices[0].memory_stats()
    if not statistics or 'bytes_limit' not in statistics:
      return 1
    free = statistics['bytes_limit'] - _bytes(self.params)
    return len(self.devices) * windows_that_fit(self.bytes_seen, free)

  @functools.cached_property
  def bytes_seen(self) -> int:
    """Bytes of what the model sees of one window; see `MoME.see`."""
    channels = len(self.config.data.windows)
    window = jax.ShapeDtypeStruct((1, *self.config.evaluation.window, channels), np.float32)
    with jax.set_mesh(self._mesh):
      sight = jax.eval_shape(
        steps.make_see_step(self.model), self.params, window, self.trained_text
      )
    return _bytes(sight)

  @property
  def members(self) -> Sequence['Predictor']:
    """The model alone."""
    return (self,)

  def reader(self, prompts: Sequence[str]) -> Reader:
    """See `Model.reader`; four prompts a part."""
    return functools.partial(self.ask, self._read, self.buckets(prompts))

  def fingerprint(self) -> str:
    """See `Model.fingerprint`."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
      array = np.asarray(leaf)
      digest.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'.encode())
      digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()

  def text_fingerprint(self, prompts: Sequence[str]) -> str:
    """See `Model.text_fingerprint`."""
    digest = hashlib.sha256()
    for name, array in sorted(self._inputs(prompts).items()):
      digest.update(f'{name} {array.dtype} {array.shape}'.encode())
      digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
