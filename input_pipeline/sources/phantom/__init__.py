"""The synthetic cohort of the demo and of the tests: no patient data needed."""

from input_pipeline.sources.phantom.cohort import PHANTOM, PHANTOM_TUNE, phantom_cases
from input_pipeline.sources.phantom.trunk import make_phantom

__all__ = ['PHANTOM', 'PHANTOM_TUNE', 'make_phantom', 'phantom_cases']
