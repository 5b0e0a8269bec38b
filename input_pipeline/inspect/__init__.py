"""Pictures of prepared sources: `command` says which and where, `contact_sheet` draws them."""

from input_pipeline.inspect.command import main, make_parser

__all__ = ['main', 'make_parser']
