"""Where the models, the scan and the data lie that come with the package."""

import os
import pathlib

ASSETS = pathlib.Path(__file__).parent / 'assets'
MODEL = ASSETS / 'openkbp'  # head and neck organs; its README.md says what it can do
NAME = 'shipped'  # of MODEL, wherever a model is asked for
TEXT = ASSETS / 'text'  # a text encoder alone, which knows anatomy
SCAN = ASSETS / 'demo' / 'head_neck.nii.gz'
FAMILIARITY = ASSETS / 'familiarity.json'  # how well a prompt must fit what a model knows
OTHER_WORDS = ASSETS / 'other_words.csv'  # that name nothing of the vocabulary
PUBLISHED = ASSETS / 'published.json'  # Dice of other models


def is_model(path: str | os.PathLike) -> bool:
  """Whether a path is that of MODEL, here or in another environment, or its name."""
  parts = pathlib.PurePath(path).parts[-3:]
  return os.fspath(path) == NAME or parts == MODEL.parts[-3:]  # mome_jax/assets/openkbp
