"""The training loss of `mome_jax.training.losses`, in PyTorch."""

import torch
from torch.nn import functional


def masked_bce_dice(
  logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor, *, log: bool
) -> torch.Tensor:
  """BCE + Dice over the supervised (case, class) pairs, as `training.losses.masked_bce_dice`.

  Args:
    logits: (B, K, D, H, W) float32.
    targets: (B, K, D, H, W) bool.
    valid: (B, K, D, H, W) bool; False where the label says nothing about the class.
    log: -log(Dice) in place of 1 - Dice.

  Returns:
    A scalar, the sum of both.
  """
  spatial = (2, 3, 4)
  logits = torch.where(valid, logits, 0.0)
  targets, valid = (targets & valid).float(), valid.float()
  voxels = valid.sum(spatial)
  bce = functional.binary_cross_entropy_with_logits(logits, targets, reduction='none') * valid
  bce = bce.sum(spatial) / voxels.clamp(min=1)  # 0 of an unsupervised pair
  probability = torch.sigmoid(logits) * valid
  e = 1e-7 if log else 1.0
  overlap = (probability * targets).sum(spatial)
  size = targets.sum(spatial)
  dice = (2 * overlap + e) / (probability.sum(spatial) + size + e)
  dice = -torch.log(dice) if log else 1 - dice
  present = size > 0
  dice = (dice * present).sum() / present.sum().clamp(min=1)
  return bce.sum() / (voxels > 0).sum().clamp(min=1) + dice


def valid_voxels(
  shape: tuple[int, int, int],
  supervised: torch.Tensor,
  frame: torch.Tensor,
  slice_range: torch.Tensor,
) -> torch.Tensor:
  """Where the labels of a batch say something about each class: (B, K, D, H, W) bool.

  Arguments as those of `mome_jax.training.losses.valid_voxels`.
  """
  positions = [torch.arange(n, dtype=torch.float32, device=frame.device) for n in shape]
  grid = torch.stack([*torch.meshgrid(*positions, indexing='ij'), torch.ones(shape).to(frame)], -1)
  height = torch.einsum('dhwa,ba->bdhw', grid, frame)[:, None]
  low, high = (slice_range[..., i, None, None, None] for i in (0, 1))
  slack = 1e-3 * frame[:, :3].abs().amax(1).reshape(-1, 1, 1, 1, 1)
  inside = (height >= low - slack) & (height <= high + slack)
  return supervised[..., None, None, None] & inside
