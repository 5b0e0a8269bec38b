"""Where the models and the scan lie that come with the package."""

import pathlib

ASSETS = pathlib.Path(__file__).parent / 'assets'
MODEL = ASSETS / 'openkbp'  # head and neck organs; its README.md says what it can do
TEXT = ASSETS / 'text'  # a text encoder alone, which knows anatomy
SCAN = ASSETS / 'demo' / 'head_neck.nii.gz'
FAMILIARITY = ASSETS / 'familiarity.json'  # how well a prompt must fit what a model knows
OTHER_WORDS = ASSETS / 'other_words.csv'  # that name nothing of the vocabulary
