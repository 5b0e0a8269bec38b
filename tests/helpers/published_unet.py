"""The U-Net of the CLIP-Driven Universal Model in PyTorch, from a state dict's published names."""

import torch
import torch.nn.functional as F


def pyramid(state: dict[str, torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
  """Decoder features (B, C_l, D_l, H_l, W_l), finest first, of x (B, C_in, D, H, W)."""

  def block(x, name):
    for i in (0, 1):
      conv, norm = f'backbone.{name}.ops.{i}.conv1', f'backbone.{name}.ops.{i}.bn1'
      x = F.conv3d(x, state[f'{conv}.weight'], state[f'{conv}.bias'], padding=1)
      affine = state[f'{norm}.weight'], state[f'{norm}.bias']
      x = F.relu(F.batch_norm(x, None, None, *affine, training=True))
    return x

  skips = [block(x, 'down_tr64')]
  for width in (128, 256, 512):
    skips.append(block(F.max_pool3d(skips[-1], 2), f'down_tr{width}'))
  features = [skips.pop()]
  for width in (256, 128, 64):
    conv = f'backbone.up_tr{width}.up_conv'
    x = F.conv_transpose3d(features[0], state[f'{conv}.weight'], state[f'{conv}.bias'], stride=2)
    features.insert(0, block(torch.cat([x, skips.pop()], 1), f'up_tr{width}'))
  return features
