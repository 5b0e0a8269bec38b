"""Text vectors: found by prompt, refused when they are not what their key says."""

import contextlib
import dataclasses
import itertools

import numpy as np
import pytest

from mome_jax.text import vectors

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)
VECTORS = vectors.TextVectors(('a liver', 'a spleen'), ROWS, {'model': 'tiny', 'max_length': 8})


def test_rows_are_found_by_prompt(tmp_path):
  VECTORS.save(tmp_path / 'v.npz')
  loaded = vectors.TextVectors.load(tmp_path / 'v.npz')
  assert loaded.prompts == VECTORS.prompts
  assert loaded.source == VECTORS.source
  assert loaded.embeddings.dtype == np.float32
  np.testing.assert_array_equal(loaded(['a spleen', 'a liver', 'a spleen']), ROWS[[1, 0, 1]])
  assert 'a liver' in loaded
  assert 'liver' not in loaded


def test_a_save_that_ends_midway_leaves_the_file_that_was_there(tmp_path, monkeypatch):
  file, other = tmp_path / 'v.npz', dataclasses.replace(VECTORS, embeddings=ROWS + 1)
  VECTORS.save(file)

  def write_a_part(target, **arrays):
    target.write(b'PK')
    raise OSError('no space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(np, 'savez_compressed', write_a_part)
    with pytest.raises(OSError, match='no space'):
      other.save(file)
  np.testing.assert_array_equal(vectors.TextVectors.load(file).embeddings, ROWS)
  (tmp_path / 'before').hardlink_to(file)
  other.save(file)  # a file of its own, not the old one overwritten
  np.testing.assert_array_equal(vectors.TextVectors.load(tmp_path / 'before').embeddings, ROWS)
  np.testing.assert_array_equal(vectors.TextVectors.load(file).embeddings, ROWS + 1)
  assert len(list(tmp_path.iterdir())) == 2


def test_an_unknown_prompt_names_the_way_out():
  with pytest.raises(vectors.TextVectorError, match="'hepar'.*tiny, and nothing can add"):
    VECTORS(['a liver', 'hepar'])


def test_prompts_of_another_file_come_behind():
  more = vectors.TextVectors(('a spleen', 'hepar'), ROWS + 9, VECTORS.source)
  joined = VECTORS.with_others(more)
  assert joined.prompts == ('a liver', 'a spleen', 'hepar')
  np.testing.assert_array_equal(joined.embeddings, [*ROWS, ROWS[1] + 9])
  assert joined.with_others(more).prompts == joined.prompts


def test_the_table_of_rows_is_made_once():
  class Counted(tuple):
    walks = 0

    def __iter__(self):
      Counted.walks += 1
      return super().__iter__()

  known = vectors.TextVectors(Counted(VECTORS.prompts), ROWS, {})
  for _ in range(3):
    np.testing.assert_array_equal(known(['a spleen']), ROWS[[1]])
    assert 'a liver' in known
  assert Counted.walks == 1


def test_whoever_asks_says_what_can_be_done():
  known = vectors.TextVectors(('a liver',), ROWS[:1], {'model': 'T', 'weights_sha256': 'x'})
  with pytest.raises(vectors.TextVectorError, match=r'pass --text-model, .* made them \(T\)'):
    known(['hepar'])
  with pytest.raises(vectors.TextVectorError, match=r"'hepar'.*; ask again, the model that made"):
    known(['hepar'], 'ask again, the model')


def test_the_key_covers_prompts_and_source():
  other_source = vectors.TextVectors(VECTORS.prompts, ROWS, {'model': 'tiny', 'max_length': 9})
  other_prompts = vectors.TextVectors(('a liver', 'the spleen'), ROWS, VECTORS.source)
  assert len({VECTORS.key, other_source.key, other_prompts.key}) == 3


def test_damaged_and_mixed_files_are_refused(tmp_path):
  path = tmp_path / 'v.npz'
  with pytest.raises(vectors.TextVectorError, match='v.npz: no such file; make it with python -m'):
    vectors.TextVectors.load(path)
  VECTORS.save(path)
  data = path.read_bytes()
  for content in (b'', data[: len(data) // 2], b'noise' * 99):
    path.write_bytes(content)
    with pytest.raises(vectors.TextVectorError, match='no text vectors; make them'):
      vectors.TextVectors.load(path)
  for i, bit in itertools.product(range(len(data)), (1, 16)):
    path.write_bytes(data[:i] + bytes([data[i] ^ bit]) + data[i + 1 :])
    with contextlib.suppress(vectors.TextVectorError):  # of the date of a file inside, nobody reads
      assert vectors.TextVectors.load(path).key == VECTORS.key
  with np.load(_written(path, data)) as arrays:
    changed = dict(arrays) | {'prompts': np.array(['a liver', 'the kidney'])}
  np.savez(path, **changed)
  with pytest.raises(vectors.TextVectorError, match='does not match its key'):
    vectors.TextVectors.load(path)


def _written(path, data):
  path.write_bytes(data)
  return path


def test_rows_and_prompts_must_agree():
  with pytest.raises(vectors.TextVectorError, match='2 prompts, embeddings'):
    vectors.TextVectors(('a', 'b'), np.zeros((3, 2), np.float32), {})
