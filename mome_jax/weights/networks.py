"""Published segmentation networks as (part of) a `MoME`: the CLIP-Driven Universal Model, MONAI."""

import dataclasses
from collections.abc import Callable, Mapping

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mome_jax.configs import baseline_swin_unetr, baseline_unet, paper_swin_unetr
from mome_jax.errors import suggest
from mome_jax.models import build_model
from mome_jax.models.backbones import swin, swin_unetr, unet
from mome_jax.weights import strict_fill
from mome_jax.weights import swin_unetr as swin_names
from mome_jax.weights.errors import WeightsError

_TEXT = 'organ_embedding'  # the text vectors of the classes, a buffer of the network
_HEAD = {
  'text': 'text_to_vision',
  'context/norm': 'GAP.0',
  'context/project': 'GAP.3',
  'heads/controller': 'controller',
  'expert_0/norm': 'precls_conv.0',
  'expert_0/project': 'precls_conv.2',
}


@dataclasses.dataclass(frozen=True)
class Converted:
  """A published segmentation network.

  Attributes:
    variables: {'params': ...}, float32, named as those of the `MoME` it belongs to.
    config: the experiment with that MoME.
    text: (K, d_t) float32, the vectors of the classes the network was trained with, or None.
    fresh: paths of the variables of the backbone that the checkpoint does not fill.
  """

  variables: dict
  config: ml_collections.ConfigDict
  text: np.ndarray | None = None
  fresh: tuple[str, ...] = ()


def universal_unet(state: Mapping[str, np.ndarray]) -> Converted:
  """The CLIP-Driven Universal Model on its U-Net."""
  stem = state.get('backbone.down_tr64.ops.0.conv1.weight')
  config = baseline_unet.get_config()
  _set_channels(config, 1 if stem is None else stem.shape[1])
  # NOTE: the network normalised by the batch in evaluation too; its running statistics are unused.
  ignore = (
    r'backbone\..*\.(running_mean|running_var|num_batches_tracked)',
    r'backbone\.out_tr\..*',
  )
  return _universal('universal_unet', state, config, _unet_key, ignore)


def universal_swin_unetr(state: Mapping[str, np.ndarray]) -> Converted:
  """The CLIP-Driven Universal Model on Swin UNETR."""
  config = baseline_swin_unetr.get_config()
  _set_sizes(config, {key.removeprefix('backbone.'): value for key, value in state.items()})
  ignore = (rf'backbone\.{swin_names.DERIVED}', rf'backbone\.{swin_names.HEAD}')
  return _universal('universal_swin_unetr', state, config, swin_names.key_of, ignore)


def monai_swin_unetr(state: Mapping[str, np.ndarray], *, merging: str = 'monai') -> Converted:
  """MONAI's Swin UNETR: the backbone; its output convolution is left out.

  Args:
    state: tensors by name.
    merging: order of the neighbours in patch merging, a key of `swin.MERGING_ORDERS`; no tensor
      tells it.
  """
  return _backbone('monai_swin_unetr', state, merging, (swin_names.DERIVED, swin_names.HEAD))


def monai_swin_vit(state: Mapping[str, np.ndarray], *, merging: str = 'monai') -> Converted:
  """The encoder of Swin UNETR after self-supervised training; the rest of the backbone is fresh.

  Args:
    state: tensors by name.
    merging: see `monai_swin_unetr`.
  """
  state = swin_names.vit_names(state)
  ignore = (swin_names.DERIVED, swin_names.PRETRAINING)
  return _backbone('monai_swin_vit', state, merging, ignore, covers='swin/')


def _universal(source, state, config, key_of: Callable, ignore) -> Converted:
  text = state.get(_TEXT)
  if text is not None:
    text = np.asarray(text, np.float32)
    config.classes = config.classes[: len(text)]  # files of 31 classes lack the last one
    config.text.d_model = text.shape[-1]
  shapes = strict_fill.flatten(_shapes(config))

  def key(path):
    part, _, inner = path.partition('/')
    if part == 'backbone':
      return f'backbone.{key_of(inner)}'
    module, _, leaf = path.rpartition('/')
    return f'{_HEAD[module]}.{"bias" if leaf == "bias" else "weight"}'

  filled = strict_fill.fill(source, state, shapes, key, ignore=(*ignore, _TEXT))
  return Converted(_variables(filled), config, text)


def _backbone(source, state, merging: str, ignore, covers: str = '') -> Converted:
  if merging not in swin.MERGING_ORDERS:
    raise WeightsError(f'merging {merging!r}; {suggest(merging, swin.MERGING_ORDERS)}')
  config = paper_swin_unetr.get_config()
  config.model.backbone.merging = merging
  _set_sizes(config, state)
  shapes = strict_fill.flatten(_shapes(config)['backbone'])
  covered = {path: shape for path, shape in shapes.items() if path.startswith(covers)}
  filled = strict_fill.fill(source, state, covered, swin_names.key_of, ignore=ignore)
  fresh = tuple(f'backbone/{path}' for path in shapes if path not in covered)
  variables = _variables({f'backbone/{path}': value for path, value in filled.items()})
  return Converted(variables, config, fresh=fresh)


def _shapes(config) -> dict:
  """Parameters of the `MoME` of an experiment, without their values."""
  model = build_model(config.model)
  side = 2 * model.backbone.stride
  image = jax.ShapeDtypeStruct((1, side, side, side, len(config.data.windows)), jnp.float32)
  text = jax.ShapeDtypeStruct((1, config.text.d_model), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image, text)['params']


def _variables(flat: dict[str, np.ndarray]) -> dict:
  return {'params': flax.traverse_util.unflatten_dict(flat, sep='/')}


def _set_channels(config, channels: int) -> None:
  """Sets C_in. Which HU windows the channels were is not in the file: all get the config's."""
  config.data.windows = config.data.windows[:1] * channels


def _set_sizes(config, state: Mapping[str, np.ndarray]) -> None:
  """Sets the size of a Swin UNETR backbone and C_in."""
  if swin_names.has_convolutions(state):
    raise WeightsError(
      'weights of a Swin UNETR with use_v2=True, whose convolutions (layers1c and on) no network '
      'here has; give those of one without'
    )
  features, channels = swin_names.sizes(state)
  known = {size['features']: name for name, size in swin_unetr.SIZES.items()}
  if features not in known:
    raise WeightsError(f'feature size {features}; known: {", ".join(map(str, known))}')
  config.model.backbone.size = known[features]
  _set_channels(config, channels)


def _unet_key(path: str) -> str:
  """Name in the original's U-Net of a variable of our `UNet`."""
  block, *inner, leaf = path.split('/')
  part, level = block.split('_')
  leaf = 'bias' if leaf == 'bias' else 'weight'
  width = unet.SIZES['base']['channels'][int(level)]
  if part == 'upsample':
    return f'up_tr{width}.up_conv.{leaf}'
  layer, i = inner[0].split('_')
  side = 'down' if part == 'encoder' else 'up'
  return f'{side}_tr{width}.ops.{i}.{"conv1" if layer == "conv" else "bn1"}.{leaf}'


SOURCES = {
  'universal_unet': universal_unet,
  'universal_swin_unetr': universal_swin_unetr,
  'monai_swin_unetr': monai_swin_unetr,
  'monai_swin_vit': monai_swin_vit,
}
