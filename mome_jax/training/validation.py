"""How well a run does on scans that it is not trained on, while it trains.

A fixed set of patches is drawn from held-out scans as training draws its own, without augmentation,
and segmented with the averaged parameters. Dice is that of all patches together, as in nnU-Net's
training: what it costs is known before, however many and large the scans are.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm
from etils import epath
from jax.sharding import Mesh, NamedSharding

from input_pipeline.anatomy import IGNORE_CODE, OUTSIDE_CODE
from input_pipeline.batches.sampler import PatchSampler, StoreCase
from input_pipeline.ct.hu_windows import hu_windows
from mome_jax.errors import writing
from mome_jax.inference import sliding_window
from mome_jax.inference import steps as inference_steps
from mome_jax.models import MoME
from mome_jax.pictures import overlay
from mome_jax.pictures.colours import palette
from mome_jax.runtime import compilation
from mome_jax.text import prompt_inputs, prompts
from mome_jax.training import losses, multihost, prefetch, sharding
from mome_jax.training.validation_scans import HeldOutScans

_SEED = 0  # of the patches: the same for all runs, whatever seed they train with
_CACHE_MB = 256  # of decoded bricks, beside those of training
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[None], axis=0).astype(bool)  # (8, 256)
_PICTURE_OVERLAP = 0.25  # of the windows of the scan that is drawn


class Validation:
  """Measures averaged parameters on held-out scans; the same numbers with any hosts and devices.

  Args:
    config: the whole config.
    mesh: of the run.
    model: from `build_model`.
    text: the text branch of the run.
    scans: that are held out.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    model: MoME,
    text: prompt_inputs.TrainingText,
    scans: HeldOutScans,
  ):
    self._config, self._mesh = config, mesh
    self._batch_size = config.train.batch_size // config.train.accumulate
    self._classes, self._template = text.classes, text.template
    data = ml_collections.ConfigDict(config.data.to_dict())
    data.augment = {'enabled': False}
    data.weights = data.augment_of = ()
    data.cache_mb = min(data.cache_mb, _CACHE_MB)
    self._stores = scans.stores
    self._sampler = PatchSampler(data, self._stores, self._classes)
    default = prompts.default_prompts(self._classes, self._template)
    self._prompts = prompt_inputs.fill_bucket(text.inputs(default))
    trained = len(default) if model.bank is not None else None

    def embed(params: Any, inputs: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array | None]:
      embeddings = prompt_inputs.embeddings(text.encoder, params, inputs)
      return embeddings, None if trained is None else embeddings[:trained]

    everywhere = NamedSharding(mesh, sharding.REPLICATED)
    self._embed = jax.jit(embed, out_shardings=everywhere)
    # The program that evaluation and prediction run too: compiled once for all three.
    platform = mesh.devices.flat[0].platform
    self._predict = compilation.jit(inference_steps.make_predict_step(model), platform)
    self._compiled: Any = None
    table = jnp.asarray(self._template.code_table(self._classes))
    score = make_score_step(table, log=config.train.log_dice)
    self._score = jax.jit(score, out_shardings=everywhere)
    self._drawn = max(self._sampler.cases, key=lambda case: (len(case.voxels), case.info.name))
    self._shown = np.flatnonzero(self._drawn.supervised & ~self._drawn.absent)
    self._gather = jax.jit(some_classes, out_shardings=everywhere)

  def __call__(
    self, ema: Any, is_ending: Callable[[], bool] = lambda: False
  ) -> dict[str, float] | None:
    """Measures averaged parameters.

    Args:
      ema: of the train state.
      is_ending: whether to leave it, asked before each batch, the same on all processes.

    Returns:
      `loss_bce` and `loss_dice`, the terms of the training loss by these names, and `loss`, their
      sum; `dice/CLASS` in [0, 1] of every class that the patches hold, and `dice`, their mean.
      None where it was left.
    """
    if is_ending():
      return None
    text, trained = self._embed(ema, sharding.replicate(self._mesh, self._prompts))
    sums: list[dict[str, np.ndarray]] = []
    with contextlib.closing(prefetch.prefetch(self._batches(), ahead=2)) as batches:
      for batch in batches:
        if sums and is_ending():
          return None
        logits = self._logits(ema, text, batch.pop('image'), trained)
        sums.append(jax.device_get(self._score(logits, batch)))
    total = {name: np.sum([part[name] for part in sums], axis=0) for name in sums[0]}
    return summarise(total, self._classes)

  def draw(
    self, path: epath.Path, ema: Any, title: str, is_ending: Callable[[], bool] = lambda: False
  ) -> None:
    """Draws the prediction of one scan, always the same, around what is labelled in it.

    Every process takes part; the lead one writes.

    Args:
      path: PNG file.
      ema: of the train state.
      title: of the picture.
      is_ending: whether to leave it, asked after each slab, the same on all processes.
    """
    case = self._drawn
    low, high = self._labelled_box(case)
    image, codes = self._sampler.read(case, low, high)
    text, trained = self._embed(ema, sharding.replicate(self._mesh, self._prompts))
    names = [self._classes[k] for k in self._shown]
    # A few classes at a time: each device would hold those of all windows of all devices.
    fill = -len(self._shown) % prompt_inputs.BUCKET
    buckets = np.pad(self._shown, (0, fill)).reshape(-1, prompt_inputs.BUCKET)
    spec = sharding.batch_spec('image', spatial=self._config.mesh.spatial)
    placement = NamedSharding(self._mesh, spec)

    def predict(windows: np.ndarray) -> Any:
      # Every process has all windows: each device takes its rows, however the hosts' interleave.
      image = jax.make_array_from_callback(windows.shape, placement, lambda rows: windows[rows])
      logits = self._logits(ema, text, image, trained)
      return (self._gather(logits, numbers) for numbers in buckets)

    channels = hu_windows(image.astype(np.float32), self._sampler.windows.tolist())
    tiling = sliding_window.Tiling(self._sampler.patch, _PICTURE_OVERLAP, self._batch_size)
    slabs = sliding_window.sliding_window(predict, channels, tiling, classes=len(names))
    parts = []
    for slab in slabs:
      whole = np.broadcast_to(slab, (len(names), *slab.shape[1:]))
      parts.append(np.packbits(whole > 0, axis=0))
      if is_ending():
        return
    if not multihost.is_lead():
      return
    packed, table = np.concatenate(parts, 1), self._template.code_table(names)
    layers = overlay.Layers(
      {name: overlay.CodeMask(packed[k // 8], _BITS[k % 8]) for k, name in enumerate(names)},
      {name: overlay.CodeMask(codes, table[:, k]) for k, name in enumerate(names)},
      palette(self._classes),
      labelled=np.asarray(table.any(1))[codes],  # the same slices every time
    )
    spacing = tuple(self._config.data.spacing)
    with writing(path):
      overlay.overlay(path, image, spacing, layers, f'{case.info.name}, {title}')

  def _logits(self, *arguments: Any) -> jax.Array:
    """What the predict step returns; compiled at first, which is told."""
    if self._compiled is None:
      key = compilation.about(self._config, training=True)
      told = compilation.told('the predict step', key, tqdm.tqdm.write)
      with told if multihost.is_lead() else contextlib.nullcontext():
        self._compiled = self._predict.lower(*arguments).compile()
    return self._compiled(*arguments)

  def _labelled_box(self, case: StoreCase) -> tuple[np.ndarray, np.ndarray]:
    """The first voxel of the bricks that hold a class, and one past the last, plus half a patch.

    Of a scan without any, all of it.
    """
    if not case.voxels:
      return np.zeros(3, int), np.array(case.info.shape)
    edge = self._stores[case.store].brick
    numbers = np.concatenate([records for records, _ in case.voxels.values()])
    cells = np.argwhere(np.isin(case.records, numbers))
    margin = np.array(self._sampler.patch) // 2
    low = np.maximum(cells.min(0) * edge - margin, 0)
    return low, np.minimum((cells.max(0) + 1) * edge + margin, case.info.shape)

  def _batches(self) -> Iterator[dict[str, jax.Array]]:
    """Every patch once, on the devices; what fills up the last batch is labelled nowhere."""
    size, patches = self._batch_size, self._config.validation.patches
    rows, host = size // jax.process_count(), jax.process_index()
    for first in range(0, patches, size):
      numbers = range(first + host * rows, first + (host + 1) * rows)
      examples = [self._sampler.sample(number, _SEED) for number in numbers]
      for number, example in zip(numbers, examples, strict=True):
        if number >= patches:
          example['label'] = np.full_like(example['label'], IGNORE_CODE)
      yield self._place({name: np.stack([e[name] for e in examples]) for name in examples[0]})

  def _place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    return sharding.shard_batch(self._mesh, batch, spatial=self._config.mesh.spatial)


def some_classes(logits: jax.Array, numbers: jax.Array) -> jax.Array:
  """Logits (B, D, H, W, K) -> (B, N, D, H, W), those of the classes `numbers` (N,) int."""
  return jnp.moveaxis(jnp.take(logits, numbers, axis=-1), -1, 1)


def make_score_step(table: jax.Array, *, log: bool) -> Callable[..., dict[str, jax.Array]]:
  """score_step(logits (B, D, H, W, K or more), batch) -> sums over the batch, float32.

  `batch` holds the arrays of `input_pipeline.batches.spec.BATCH` but the image. The sums: `bce` and
  `dice`, losses of the (patch, class) pairs that are supervised and not declared absent, and that
  hold the class; `pairs`
  and `present`, their numbers; `overlap`, `predicted` and `labelled` (K,), in voxels.

  Args:
    table: (256, K) bool; whether a label code belongs to a class.
    log: as of `losses.masked_bce_dice`.
  """

  def score_step(logits: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    logits = jnp.moveaxis(logits[..., : table.shape[1]], -1, 1)
    label = batch['label']
    _, depth, height, width = label.shape
    targets = losses.look_up(table, label)
    valid = losses.valid_voxels(
      (depth, height, width), batch['supervised'], batch['frame'], batch['slice_range']
    )
    valid &= (label != IGNORE_CODE)[:, None]
    known = valid | (label == OUTSIDE_CODE)[:, None]
    of_pair = lambda *pair: losses.masked_bce_dice(*(x[None, None] for x in pair), log=log)
    bce, dice = jax.vmap(jax.vmap(of_pair))(logits, targets, known)
    truth, mask = targets & valid, (logits > 0) & valid
    voxels = lambda x: x.sum((2, 3, 4), dtype=jnp.float32).sum(0)
    # What cannot be there is a term of its own in training.
    pairs = valid.any((2, 3, 4)) & ~batch['absent']
    return {
      'bce': (bce * pairs).sum(),
      'dice': dice.sum(),
      'pairs': pairs.sum(dtype=jnp.float32),
      'present': truth.any((2, 3, 4)).sum(dtype=jnp.float32),
      'overlap': voxels(truth & mask),
      'predicted': voxels(mask),
      'labelled': voxels(truth),
    }

  return score_step


def summarise(total: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, float]:
  """What `Validation` returns, from the sums of all batches."""
  bce = float(total['bce'] / max(total['pairs'], 1))
  dice_loss = float(total['dice'] / max(total['present'], 1))
  values = {'loss': bce + dice_loss, 'loss_bce': bce, 'loss_dice': dice_loss}
  both = total['predicted'] + total['labelled']
  dice = {
    f'dice/{name}': float(2 * total['overlap'][k] / both[k])
    for k, name in enumerate(classes)
    if total['labelled'][k]
  }
  if dice:
    values['dice'] = float(np.mean(list(dice.values())))
  return values | dice
