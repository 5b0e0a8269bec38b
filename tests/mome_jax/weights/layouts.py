"""Checkpoints of the CLIP-Driven Universal Model, in the layout of the published files."""

import numpy as np

HEAD = {
  'GAP.0': (512,), 'GAP.3': (256, 512, 1, 1, 1), 'text_to_vision': (256, 512),
  'controller': (153, 512, 1, 1, 1), 'precls_conv.0': (64,), 'precls_conv.2': (8, 64, 1, 1, 1),
}  # fmt: skip


def unet_state(classes: int) -> dict[str, np.ndarray]:
  """A random state dict with every name and shape of the published U-Net file."""
  rng = np.random.default_rng(0)
  state = {}

  def add(name, *shape, transposed=False):
    if len(shape) == 1:
      state[f'{name}.weight'] = 1 + 0.3 * rng.normal(size=shape)
      outputs = shape[0]
    else:
      fan_in = np.prod(shape[2:]) * shape[1]
      state[f'{name}.weight'] = rng.normal(size=shape) * np.sqrt(2 / fan_in)
      outputs = shape[1] if transposed else shape[0]
    state[f'{name}.bias'] = 0.1 * rng.normal(size=outputs)

  def block(name, channels):
    for i, (before, after) in enumerate(zip(channels, channels[1:], strict=False)):
      add(f'backbone.{name}.ops.{i}.conv1', after, before, 3, 3, 3)
      add(f'backbone.{name}.ops.{i}.bn1', after)
      state[f'backbone.{name}.ops.{i}.bn1.running_mean'] = rng.normal(size=after)
      state[f'backbone.{name}.ops.{i}.bn1.running_var'] = np.ones(after)
      state[f'backbone.{name}.ops.{i}.bn1.num_batches_tracked'] = np.array(7)

  for name, channels in {
    'down_tr64': (1, 32, 64), 'down_tr128': (64, 64, 128), 'down_tr256': (128, 128, 256),
    'down_tr512': (256, 256, 512), 'up_tr256': (768, 256, 256), 'up_tr128': (384, 128, 128),
    'up_tr64': (192, 64, 64),
  }.items():  # fmt: skip
    block(name, channels)
    if name.startswith('up'):
      width = 2 * channels[-1]
      add(f'backbone.{name}.up_conv', width, width, 2, 2, 2, transposed=True)
  for name, shape in HEAD.items():
    add(name, *shape)
  state['organ_embedding'] = 0.1 * rng.normal(size=(classes, 512))
  return {name: value.astype(np.float32) for name, value in state.items()}
