"""What is wrong with a published checkpoint."""

from mome_jax.errors import UserError


class WeightsError(UserError):
  """A checkpoint does not fit its source's structure; the message lists every problem."""
