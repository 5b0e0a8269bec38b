"""Where the models and the scan lie that come with the package."""

import pathlib

_ASSETS = pathlib.Path(__file__).parent / 'assets'
MODEL = _ASSETS / 'openkbp'  # head and neck organs; its README.md says what it can do
TEXT = _ASSETS / 'text'  # a text encoder alone, which knows anatomy
SCAN = _ASSETS / 'demo' / 'head_neck.nii.gz'
FAMILIARITY = _ASSETS / 'familiarity.json'  # how well a prompt must fit what a model knows
OTHER_WORDS = _ASSETS / 'other_words.csv'  # that name nothing of the vocabulary
