"""Names of MONAI's Swin UNETR, and of the checkpoints that hold its encoder alone."""

import re
from collections.abc import Mapping

import numpy as np

# The index of the position bias is derived; an older MONAI stored it.
DERIVED = r'swinViT\..*\.attn\.relative_position_index'
HEAD = r'out\.conv\.conv\.(weight|bias)'
# Heads of self-supervised training, and its final norm, which no other network has.
PRETRAINING = r'(norm|rotation_head|contrastive_head|conv|encoder)\..*'
_EMBEDDING = 'swinViT.patch_embed.proj.weight'

_RULES = (
  (r'swin/embed', r'swinViT.patch_embed.proj'),
  (r'swin/stage_(\d)_block_(\d)/norm_attention', r'swinViT.layers\1+.0.blocks.\2.norm1'),
  (r'swin/stage_(\d)_block_(\d)/norm_mlp', r'swinViT.layers\1+.0.blocks.\2.norm2'),
  (r'swin/stage_(\d)_block_(\d)/mlp_in', r'swinViT.layers\1+.0.blocks.\2.mlp.linear1'),
  (r'swin/stage_(\d)_block_(\d)/mlp_out', r'swinViT.layers\1+.0.blocks.\2.mlp.linear2'),
  (r'swin/stage_(\d)_block_(\d)/attention/qkv', r'swinViT.layers\1+.0.blocks.\2.attn.qkv'),
  (r'swin/stage_(\d)_block_(\d)/attention/project', r'swinViT.layers\1+.0.blocks.\2.attn.proj'),
  (r'swin/stage_(\d)_block_(\d)/attention', r'swinViT.layers\1+.0.blocks.\2.attn'),
  (r'swin/stage_(\d)_merging/(norm|reduction)', r'swinViT.layers\1+.0.downsample.\2'),
  (r'encoder_5/(\w+)', r'encoder10.layer.\1'),
  (r'encoder_(\d)/(\w+)', r'encoder\1+.layer.\2'),
  (r'decoder_(\d)/upsample', r'decoder\1+.transp_conv.conv'),
  (r'decoder_(\d)/block/(\w+)', r'decoder\1+.conv_block.\2'),
)
_LEAVES = {
  'kernel': '.weight',
  'scale': '.weight',
  'bias': '.bias',
  'position_bias': '.relative_position_bias_table',
}


def key_of(path: str) -> str:
  """Name in MONAI's `SwinUNETR` of a variable of our `SwinUNETR`."""
  module, _, leaf = path.rpartition('/')
  for pattern, name in _RULES:
    match = re.fullmatch(pattern, module)
    if match:
      # MONAI counts from 1: \1+ is the number after ours.
      name = match.expand(re.sub(r'\\1\+', '{}', name))
      name = name.format(int(match[1]) + 1) if '{}' in name else name
      for ours, theirs in (('conv_0', 'conv1'), ('conv_1', 'conv2'), ('shortcut', 'conv3')):
        name = re.sub(rf'\.{ours}$', f'.{theirs}.conv', name)
      return name + _LEAVES[leaf]
  raise KeyError(path)


def vit_names(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The same tensors, named as in `SwinUNETR`, of a checkpoint that holds the encoder alone.

  Such files leave out the prefix `swinViT.` and name the feed-forward layers `fc1` and `fc2`.
  """
  named = {}
  for key, value in state.items():
    key = key.removeprefix('swinViT.')
    if re.match(r'(patch_embed|layers[1-4])\.', key):
      key = 'swinViT.' + key.replace('.mlp.fc1.', '.mlp.linear1.').replace('.fc2.', '.linear2.')
    named[key] = value
  return named


def has_convolutions(state: Mapping[str, np.ndarray]) -> bool:
  """Whether a convolution stands before each stage, as MONAI's `use_v2=True` has it."""
  return any(re.match(r'(swinViT\.)?layers[1-4]c\.', key) for key in state)


def sizes(state: Mapping[str, np.ndarray]) -> tuple[int, int]:
  """Feature size and channels of the image; the published ones where the embedding is missing."""
  if _EMBEDDING in state and state[_EMBEDDING].ndim == 5:
    return state[_EMBEDDING].shape[:2]
  return 48, 1
