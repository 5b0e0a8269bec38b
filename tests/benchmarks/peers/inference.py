"""Segments scans with a peer, on the path that MoME takes."""

import numpy as np
import torch

from mome_jax.inference.segmenter import Segmenter, Settings


def make_segmenter(network: torch.nn.Module, config, device: str) -> Segmenter:
  """Segments scans with the sliding window, resampling and post-processing of MoME.

  Args:
    network: in evaluation mode, (B, C, D, H, W) -> logits (B, K, D, H, W).
    config: of `recipes.make_config`.
    device: that holds the network.
  """

  @torch.inference_mode()
  def predict(windows: np.ndarray) -> np.ndarray:
    logits = network(torch.from_numpy(windows).to(device).movedim(-1, 1).contiguous())
    return logits.float().cpu().numpy()

  return Segmenter(predict, config.classes, Settings.of_config(config))
