"""Cross-validation: every fold trained and scored, the scores pooled, the models an ensemble."""

from mome_jax.crossval.command import main, make_parser

__all__ = ['main', 'make_parser']
