"""What the text branch takes, trained along or frozen."""

import numpy as np
import pytest
import torch

from input_pipeline import remarks
from mome_jax.configs import demo
from mome_jax.errors import ConfigError
from mome_jax.text import prompt_inputs, prompts
from mome_jax.text.vectors import TextVectorError, TextVectors


def config(**text):
  result = demo.get_config()
  result.classes = ('liver', 'spleen')
  result.text.update(text)
  return result


def vectors(texts):
  rows = np.random.default_rng(0).normal(size=(len(texts), 6)).astype(np.float32)
  return TextVectors(tuple(texts), rows, {'model': 'random'})


def test_joint_text_gives_tokens():
  text = prompt_inputs.for_training(config())
  batch = text.batch(seed=3, step=7)
  assert {kind: len(inputs['ids']) for kind, inputs in batch.items()} == {
    'sampled': 2, 'default': 2, 'negative': 4,
  }  # fmt: skip
  for inputs in batch.values():
    assert inputs['ids'].shape == inputs['mask'].shape == (len(inputs['ids']), 40)
  assert text.vectors is None
  assert text.encoder.config.d_model == text.width == 128


def test_frozen_text_gives_the_vectors_of_the_same_prompts(tmp_path):
  known = vectors(prompts.training_prompts(names=['liver', 'spleen', 'aorta']))
  known.save(tmp_path / 'text.npz')
  text = prompt_inputs.for_training(config(mode='frozen', vectors=str(tmp_path / 'text.npz')))
  assert text.encoder is None
  assert text.width == 6
  for step in range(3):
    drawn = prompts.sample_prompts(('liver', 'spleen'), seed=3, step=step)
    default = prompts.default_prompts(('liver', 'spleen'))
    batch = text.batch(seed=3, step=step)
    np.testing.assert_array_equal(batch['sampled']['vectors'], known(drawn))
    np.testing.assert_array_equal(batch['default']['vectors'], known(default))


def test_vectors_of_default_prompts_alone_train_without_synonyms(tmp_path):
  rows = torch.randn(32, 512)
  torch.save(rows, tmp_path / 'cum.pth')
  with remarks.collected() as notes:
    text = prompt_inputs.for_training(config(mode='frozen', vectors=str(tmp_path / 'cum.pth')))
  assert notes == []
  for step in range(5):
    for inputs in text.batch(seed=0, step=step).values():
      np.testing.assert_array_equal(inputs['vectors'], rows[[5, 0]].numpy())


def test_a_synonym_without_a_vector_is_told(tmp_path):
  drawn = prompts.training_prompts(names=['liver', 'spleen'])
  path = tmp_path / 'text.npz'
  vectors([prompt for prompt in drawn if prompt not in ('hepar', 'lien')]).save(path)
  with remarks.collected() as notes:
    text = prompt_inputs.for_training(config(mode='frozen', vectors=str(path)))
  [note] = notes
  assert note.startswith(f"{path}: no vector for 'hepar', 'lien', so that all classes")
  assert 'make it with python -m mome_jax.text.embed' in note
  batch = text.batch(seed=0, step=0)
  np.testing.assert_array_equal(batch['sampled']['vectors'], batch['default']['vectors'])
  vectors(drawn).save(path)
  with remarks.collected() as notes:
    prompt_inputs.for_training(config(mode='frozen', vectors=str(path)))
  assert notes == []


def test_negatives_of_other_anatomy():
  off = config()
  off.train.negatives = 0
  assert set(prompt_inputs.for_training(off).batch(seed=0, step=0)) == {'sampled', 'default'}
  names = {term.name for term in prompt_inputs.for_training(config()).others}
  assert 'pancreas' in names and not names & {'liver', 'spleen', 'caudate lobe'}
  many = config()
  many.train.negatives = 1000
  with pytest.raises(ConfigError, match=r'train.negatives is 1000; the vocabulary has \d+ terms'):
    prompt_inputs.for_training(many)


def test_what_is_missing_comes_with_the_command(tmp_path):
  command = 'python -m mome_jax.text.embed --model=FOLDER --output=FILE.npz'
  for path in ('', str(tmp_path / 'nothing.npz')):
    with pytest.raises(TextVectorError, match=command):
      prompt_inputs.for_training(config(mode='frozen', vectors=path))
  vectors(['A computerized tomography of a liver']).save(tmp_path / 'liver.npz')
  with pytest.raises(TextVectorError, match="no vector for '.* of a spleen'"):
    prompt_inputs.for_training(config(mode='frozen', vectors=str(tmp_path / 'liver.npz')))
  known = TextVectors(('a liver',), np.zeros((1, 6), np.float32), {'weights_sha256': 'x'})
  known.save(tmp_path / 't5.npz')
  with pytest.raises(TextVectorError) as error:  # training has no --text-model
    prompt_inputs.for_training(config(mode='frozen', vectors=str(tmp_path / 't5.npz')))
  assert '--config.text.vectors=FILE.npz' in str(error.value)
  assert '--text-model' not in str(error.value)
  with pytest.raises(ConfigError, match="text.mode is 'thawed'; known: joint, frozen"):
    prompt_inputs.for_training(config(mode='thawed'))


def test_empty_prompts_fill_up():
  padded = prompt_inputs.pad({'ids': np.ones((2, 3), np.int32), 'mask': np.ones((2, 3), bool)}, 4)
  np.testing.assert_array_equal(padded['mask'], [[1, 1, 1]] * 2 + [[0, 0, 0]] * 2)
