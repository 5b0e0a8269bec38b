"""MoME: a mixture of the decoder layers of a segmentation network, routed by text and vision."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from mome_jax import ops
from mome_jax.errors import ConfigError, suggest
from mome_jax.models import backbones, class_maps, heads, router, scale_expert
from mome_jax.models.sparse_bank import BankOptions, make_options

AIR = 0.1  # of a HU window; noise of augmentation stays below
DTYPES = ('float32', 'bfloat16', 'float16')
# y = anchor + tanh(share) (mixture - anchor). 'none': the mixture alone, of which the finest expert
# has most at the start. 'finest': the finest expert; a network whose other variables come from a
# baseline starts out equal to it. 'equal': the mean of all experts, who learn alike until the
# router has something to say.
ANCHORS = ('none', 'finest', 'equal')


class Sight(NamedTuple):
  """What a model has seen of an image, before any prompt is read.

  Attributes:
    features: L arrays (B, D_l, H_l, W_l, C_l), the decoder layers that are experts.
    context: (B, d) float32, of the scan.
    outputs: L arrays (B, 8, D_l, H_l, W_l), z_l of the experts.
    reports: scale -> report of its bank.
  """

  features: Sequence[jax.Array]
  context: jax.Array
  outputs: Sequence[jax.Array]
  reports: Mapping[int, Mapping[str, jax.Array]]


class MoME(nn.Module):
  """Text-prompted segmentation: one logit map per prompt.

  Attributes:
    backbone: module, image -> pyramid of features, finest first.
    experts: 'pyramid' mixes the decoder layers in `scales`; 'finest' uses the last layer alone,
      without a router, which is the CLIP-Driven Universal Model: `scales`, `top_k`,
      `router_inputs`, `anchor` and `router_apart` are of the mixture, and say nothing then.
    scales: indices of the decoder layers that take part, finest first, starting at 0; () is all.
    top_k: scales each class uses at a voxel; 0 is all (soft mixture).
    router_inputs: what the mixture depends on; see `router.Router`.
    anchor: what the mixture departs from, with a learned share: 'finest', the finest expert, from
      which it starts with none; 'equal', the mean of all, with tanh(0.1); 'none' is the mixture.
    router_apart: whether the router alone learns from its weights; backbone, experts and heads get
      the gradient of the anchor, at the logits of the mixture. Else experts that the router leaves
      learn less.
    width: d, of the class features and the scan's context.
    router_width: d_r.
    head_activation: of the class heads; see `heads.apply_head`.
    class_chunk: classes whose maps are made at the same time; fewer need less memory.
    bank: of sparse experts at some of the scales; None is one expert at each scale.
    dtype: of the backbone and the heads; parameters, router and logits are float32. On a TPU the
      maps of router logits and scores have it too, between products that sum in float32.
  """

  backbone: nn.Module
  experts: str = 'pyramid'
  scales: tuple[int, ...] = ()
  top_k: int = 0
  router_inputs: str = 'text+vision'
  anchor: str = 'none'
  router_apart: bool = False
  width: int = 256
  router_width: int = 32
  head_activation: str = 'relu'
  class_chunk: int = 8
  bank: BankOptions | None = None
  dtype: jnp.dtype = jnp.float32

  @property
  def active_scales(self) -> tuple[int, ...]:
    """Indices of the decoder layers that are experts, finest first."""
    if self.experts == 'finest':
      return (0,)
    return self.scales or tuple(range(self.backbone.num_scales))

  def __call__(
    self,
    image: jax.Array,
    text: jax.Array,
    trained_text: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Segments `image` for each row of `text`.

    Args:
      image: (B, D, H, W, C_in) float in [0, 1], one channel per HU window; D, H, W multiples of
        the backbone's stride.
      text: (K, d_t) float, embeddings of the prompts.
      trained_text: (J, d_t) float, embeddings of the training classes, which the banks of sparse
        experts attend to; never the prompts of a request, or a class's mask would depend on the
        others. None is what `init` saved in the variables (collection 'trained'), or in training,
        where the variables are parameters alone, `text`.
      train: banks drop tokens for which they have no room.

    Returns:
      logits (B, D, H, W, K) float32, and a dict: 'expert_logits' and 'router_logits', lists of L
      arrays (B, K, D_l, H_l, W_l) float32, finest first (no 'router_logits' for one scale); and
      'banks', scale -> report of its bank, see `sparse_bank.SparseBank`.

    Raises:
      ValueError: if a side of the image is no multiple of the backbone's stride, or a model with
        banks that is not in training has no trained text.
    """
    return self._run(image, text, trained_text, train=train)

  def see(self, image: jax.Array, trained_text: jax.Array | None = None) -> Sight:
    """What `read` needs of an image: the same for all prompts; arguments as for a call."""
    return self._run(image, None, trained_text)._replace(reports={})

  def read(self, sight: Sight, text: jax.Array) -> jax.Array:
    """Logits (B, D, H, W, K) float32 of the prompts `text` (K, d_t), as a call returns them."""
    return self.explain(sight, text)[0]

  def explain(self, sight: Sight, text: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
    """What a call returns of the prompts `text` (K, d_t), but for the reports of banks."""
    logits, aux = self._run(None, text, sight=sight)
    return logits, aux

  @nn.compact
  def _run(
    self,
    image: jax.Array | None,
    text: jax.Array | None,
    trained_text: jax.Array | None = None,
    *,
    sight: Sight | None = None,
    train: bool = False,
  ) -> Any:
    """Sees the image, unless its sight is given; reads the text, unless there is none."""
    project = nn.Dense(self.width, precision=ops.EXACT, name='text')
    if sight is None:
      assert image is not None  # one of the two is given
      trained = None
      if self.bank is not None:
        trained_text = self._trained_text(text, trained_text, train)
        trained = nn.relu(project(trained_text.astype(jnp.float32)))
      sight = self._see(image, trained, train)
    if text is None:
      return sight
    features, context, outputs, reports = sight
    classes = nn.relu(project(text.astype(jnp.float32)))
    theta = heads.HeadGenerator(name='heads')(context, classes)
    gates = []
    if len(features) > 1:
      routing = router.Router(
        self.router_width, self.router_inputs, equal_start=self.anchor == 'equal', name='router'
      )
      if self.router_apart:
        features, classes, context = jax.lax.stop_gradient((features, classes, context))
      gates = routing(features, classes, context)
    logits, scores, router_logits = self._mix(theta, gates, features, outputs)
    aux = {'expert_logits': scores, 'banks': reports}
    if router_logits:
      aux['router_logits'] = router_logits
    return jnp.moveaxis(logits, 1, -1), aux

  def _see(self, image: jax.Array, trained: jax.Array | None, train: bool) -> Sight:
    stride = self.backbone.stride
    if any(n % stride for n in image.shape[1:4]):
      raise ValueError(
        f'image of {image.shape[1:4]} voxels: every side must be a multiple of {stride}'
      )
    pyramid = self.backbone(image)
    context = heads.ScanContext(self.width, self.dtype, name='context')(pyramid[-1])
    features = [pyramid[scale] for scale in self.active_scales]
    outputs, reports = [], {}
    for scale, x in zip(self.active_scales, features, strict=True):
      options = self.bank if self.bank and scale in self.bank.scales else None
      expert = scale_expert.ScaleExpert(options, self.dtype, name=f'expert_{scale}')
      body = None if options is None else _body(image, image.shape[1] // x.shape[1])
      z, report = expert(x, trained, body, train=train)
      outputs.append(jnp.moveaxis(z, -1, 1))
      if report is not None:
        reports[scale] = report
    return Sight(features, context, outputs, reports)

  def _mix(
    self,
    theta: jax.Array,
    gates: Sequence[router.Gate],
    features: Sequence[jax.Array],
    outputs: Sequence[jax.Array],
  ) -> class_maps.Maps:
    """The maps of every class; arguments as of `class_maps.Sources`."""
    share = None
    if gates and self.anchor != 'none':
      # From nothing, the first gradients would decide whether the router is heard at all.
      start = 0.1 if self.anchor == 'equal' else 0.0
      share = mixture_share(self.param('mixture_share', nn.initializers.constant(start), ()))
      if self.anchor == 'equal' and self.router_inputs == 'uniform':
        share = jax.lax.stop_gradient(share)  # of two means that differ by round-off alone
    sources = class_maps.Sources(theta, tuple(gates), tuple(features), tuple(outputs), share)
    options = class_maps.Options(
      self.top_k, self.anchor, self.head_activation, self.class_chunk, self.router_apart
    )
    return class_maps.make_maps(sources, options)

  def _trained_text(
    self, text: jax.Array | None, given: jax.Array | None, train: bool
  ) -> jax.Array:
    """Embeddings of the training classes, (J, d_t); see `__call__`."""
    if given is not None:
      text = given
    if self.is_initializing() or (given is None and self.has_variable('trained', 'embeddings')):
      return cast(jax.Array, self.variable('trained', 'embeddings', lambda: text).value)
    if given is None and not train:
      raise ValueError(
        'the banks of sparse experts need the embeddings of the training classes: pass '
        "trained_text=, or the variables' collection 'trained' that init made"
      )
    assert text is not None  # in training there are prompts
    return text


def mixture_share(alpha: jax.Array) -> jax.Array:
  """What a mixture counts beside its anchor: tanh(max(alpha, 0)), in [0, 1); () float32.

  Without the bound a router learns as well which scale to leave out, by weights that add up to 1
  but need not be positive. Below 0 the slope is that at 0, so that a share of nothing can grow.
  """
  return jnp.tanh(alpha + jax.lax.stop_gradient(jnp.maximum(alpha, 0) - alpha))


def _body(image: jax.Array, factor: int) -> jax.Array:
  """Which blocks of factor^3 voxels are not air: (B, D, H, W, C_in) -> (B, D/f, H/f, W/f) bool.

  Air is below `AIR` in all HU windows, and so is most of the lung in one of soft tissue.
  """
  window = (1, factor, factor, factor, 1)
  image = jax.lax.stop_gradient(image)
  brightest = jax.lax.reduce_window(image, -jnp.inf, jax.lax.max, window, window, 'VALID')
  return brightest.max(-1) > AIR


def build_model(config: ml_collections.ConfigDict) -> MoME:
  """The model that `config.model` describes.

  Args:
    config: with `backbone` (see `build_backbone`), `remat`, `experts` ('pyramid', 'finest'),
      `scales`, `top_k`, `router_inputs`, `anchor`, `router_apart`, `width`, `router_width`,
      `head_activation`, `class_chunk`, `dtype`, and optionally `bank` (see
      `sparse_bank.BankOptions`).

  Raises:
    ConfigError: for a value that names nothing.
  """
  _check_known(config, 'dtype', DTYPES)
  dtype = jnp.dtype(config.dtype)
  backbone = backbones.build_backbone(config.backbone, remat=config.remat, dtype=dtype)
  _check_known(config, 'experts', ('pyramid', 'finest'))
  _check_known(config, 'head_activation', heads.ACTIVATIONS)
  _check_known(config, 'router_inputs', router.INPUTS)
  _check_known(config, 'anchor', ANCHORS)
  if config.router_apart and config.anchor == 'none' and config.experts == 'pyramid':
    raise ConfigError(
      'model.router_apart is True and model.anchor is none: experts learn from an anchor then; '
      'set model.anchor to equal or finest'
    )
  scales = tuple(config.scales)
  if scales and (
    scales[0] != 0 or list(scales) != sorted(set(scales)) or scales[-1] >= backbone.num_scales
  ):
    raise ConfigError(
      f'model.scales is {scales}; expected increasing indices below {backbone.num_scales} that '
      'start at 0'
    )
  if not 0 <= config.top_k <= (len(scales) or backbone.num_scales):
    raise ConfigError(f'model.top_k is {config.top_k}; expected 0 (all) to the number of scales')
  bank = make_options(
    config.get('bank'), scales or tuple(range(backbone.num_scales)), config.router_width
  )
  if bank and config.experts == 'finest':
    bank = dataclasses.replace(bank, scales=(0,)) if 0 in bank.scales else None
  return MoME(
    backbone=backbone,
    experts=config.experts,
    scales=scales,
    top_k=config.top_k,
    router_inputs=config.router_inputs,
    anchor=config.anchor,
    router_apart=config.router_apart,
    width=config.width,
    router_width=config.router_width,
    head_activation=config.head_activation,
    class_chunk=config.class_chunk,
    bank=bank,
    dtype=dtype,
  )


def _check_known(config: ml_collections.ConfigDict, field: str, known: Iterable[str]) -> None:
  if config[field] not in known:
    raise ConfigError(f'model.{field} is {config[field]!r}; {suggest(config[field], known)}')
