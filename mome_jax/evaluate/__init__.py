"""Scores of a checkpoint, of folders of masks, and differences between evaluations.

`evaluate` scores a checkpoint, as `python -m mome_jax.main --mode=evaluate` does;
`python -m mome_jax.evaluate` scores folders and compares runs.
"""

from typing import TYPE_CHECKING

from input_pipeline import lazy

if TYPE_CHECKING:
  from mome_jax.evaluate.command import main, make_parser
  from mome_jax.evaluate.held_out import NothingHeldOutError
  from mome_jax.evaluate.score_checkpoint import evaluate

__all__ = ['NothingHeldOutError', 'evaluate', 'main', 'make_parser']
__getattr__ = lazy.exports(
  __name__,
  {
    **dict.fromkeys(('main', 'make_parser'), 'mome_jax.evaluate.command'),
    'NothingHeldOutError': 'mome_jax.evaluate.held_out',
    'evaluate': 'mome_jax.evaluate.score_checkpoint',
  },
)
