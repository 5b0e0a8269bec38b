"""One optimizer step of a peer."""

import numpy as np
import torch

from input_pipeline.anatomy import IGNORE_CODE
from tests.benchmarks.peers import losses
from tests.benchmarks.peers.recipes import Recipe


class Trainer:
  """A network, its average and its optimizer.

  Args:
    recipe: of the peer.
    config: of `recipes.make_config`.
    code_table: (256, K) bool; whether a label code belongs to a class.
    device: of PyTorch.

  Attributes:
    network: being trained.
    average: name -> the running average of a parameter, which is scored.
    step: steps done.
  """

  def __init__(self, recipe: Recipe, config, code_table: np.ndarray, device: str):
    torch.manual_seed(config.seed)
    self.recipe = recipe
    self.device = device
    self.network = recipe.build(len(config.data.windows), len(config.classes)).to(device).train()
    self.optimizer = recipe.optimizer(self.network.parameters())
    self.average = {k: p.detach().clone() for k, p in self.network.named_parameters()}
    self.step = 0
    self._table = torch.from_numpy(code_table.T.copy()).to(device)
    self._peaks = [group['lr'] for group in self.optimizer.param_groups]

  def loss(self, batch: dict[str, np.ndarray]) -> torch.Tensor:
    """Of a batch of the pipeline; deep supervision halves the weight of every coarser output."""
    batch = {name: torch.tensor(array, device=self.device) for name, array in batch.items()}
    logits = self.network(batch['image'].movedim(-1, 1).contiguous())
    outputs = logits.unbind(1) if logits.ndim == 6 else (logits,)
    targets = self._table[:, batch['label'].int()].movedim(0, 1)
    valid = losses.valid_voxels(
      targets.shape[2:], batch['supervised'], batch['frame'], batch['slice_range']
    )
    valid &= (batch['label'] != IGNORE_CODE)[:, None]
    weights = [0.5**level for level in range(len(outputs))]
    terms = (
      weight * losses.masked_bce_dice(output, targets, valid, log=self.recipe.log_dice)
      for weight, output in zip(weights, outputs, strict=True)
    )
    return sum(terms) / sum(weights)

  def update(self, batch: dict[str, np.ndarray], progress: float) -> dict[str, torch.Tensor]:
    """One step.

    Args:
      batch: of the pipeline.
      progress: share of the training that is done, in [0, 1).

    Returns:
      Scalars 'loss', 'grad_norm' and 'learning_rate'.
    """
    recipe = self.recipe
    factor = min(1.0, (progress + 1e-3) / recipe.warmup) if recipe.warmup else 1.0
    factor *= recipe.decay(progress)
    for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
      group['lr'] = peak * factor
    loss = self.loss(batch)
    self.optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip_norm)
    self.optimizer.step()
    decay = min(recipe.ema_decay, (1 + self.step) / (10 + self.step))
    parameters = [p.detach() for p in self.network.parameters()]
    torch._foreach_lerp_(list(self.average.values()), parameters, 1 - decay)
    self.step += 1
    return {'loss': loss.detach(), 'grad_norm': norm, 'learning_rate': self._peaks[0] * factor}

  def averaged(self) -> torch.nn.Module:
    """The network for inference, averaged; neither peer has other statistics."""
    self.network.load_state_dict(self.average, strict=False)
    return self.network.eval()

  def state(self) -> dict:
    """What `restore` takes."""
    return {
      'step': self.step,
      'network': self.network.state_dict(),
      'average': self.average,
      'optimizer': self.optimizer.state_dict(),
    }

  def restore(self, saved: dict) -> None:
    """Continues from what `state` returned."""
    self.network.load_state_dict(saved['network'])
    self.optimizer.load_state_dict(saved['optimizer'])
    self.average = {k: v.to(self.device) for k, v in saved['average'].items()}
    self.step = saved['step']
