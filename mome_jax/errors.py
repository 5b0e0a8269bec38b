"""The one base of every mistake that a user can mend."""

from input_pipeline.errors import UserError

__all__ = ['UserError']
