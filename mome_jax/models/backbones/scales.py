"""What backbones say of their pyramid, where every scale halves the one before it."""


class HalvingScales:
  """Of a backbone with one number of `channels` a scale, finest first."""

  channels: tuple[int, ...]

  @property
  def num_scales(self) -> int:
    """L, entries of the pyramid."""
    return len(self.channels)

  @property
  def stride(self) -> int:
    """Of the coarsest scale; every side of an image must be a multiple of it."""
    return 2 ** (self.num_scales - 1)
