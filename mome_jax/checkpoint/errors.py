"""What can be wrong with checkpoints and model folders, and its messages cut to a line."""

import logging

from absl import logging as absl_logging

from mome_jax.errors import UserError, one_line


class CheckpointError(UserError):
  """A checkpoint is missing or does not fit; the message names it and says what to do."""


class TrainingCasesError(CheckpointError):
  """The list of training cases cannot be read; the message names the file."""


def brief(error: Exception) -> str:
  """What an error says, in a line and short enough to stand in a sentence."""
  return one_line(error)[:300] or type(error).__name__


def _is_news(record: logging.LogRecord) -> bool:
  """False for what Orbax logs: it warns of what is normal, and what it logs as errors it raises."""
  return '/orbax/' not in record.pathname


absl_logging.get_absl_logger().addFilter(_is_news)
