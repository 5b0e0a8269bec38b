import functools
import io
import warnings

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import sentencepiece

from input_pipeline.anatomy import TEMPLATE
from input_pipeline.anatomy.vocabulary import terms
from mome_jax.text import prompts, tokenizer, train_tokenizer


@functools.cache
def _built_in():
  return tokenizer.Tokenizer()


def _pieces(path=tokenizer.DEFAULT_MODEL):
  return sentencepiece.SentencePieceProcessor(model_file=str(path))


def test_layout_of_a_row():
  ids, mask = _built_in().encode(['liver', 'A CT of the left kidney'], 12)
  assert ids.shape == mask.shape == (2, 12)
  assert ids.dtype == np.int32 and mask.dtype == bool
  for row, text in enumerate(['liver', 'A CT of the left kidney']):
    expected = [*_pieces().encode(text), 1]
    assert ids[row].tolist() == expected + [0] * (12 - len(expected))
    assert mask[row].tolist() == [True] * len(expected) + [False] * (12 - len(expected))


def test_pieces_spell_the_prompt():
  ids, mask = _built_in().encode(['A CT of the Left  kidney'], 16)
  pieces = [_pieces().id_to_piece(int(i)) for i in ids[mask][:-1]]
  assert ''.join(pieces) == '▁a▁ct▁of▁the▁left▁kidney'


def test_cut_before_the_end_of_sentence():
  text = 'A computerized tomography of a liver'
  whole, _ = _built_in().encode([text], 40)
  with pytest.warns(UserWarning, match=f'{text}.*is cut to 3'):
    ids, mask = _built_in().encode([text], 4)
  assert ids.tolist() == [[*whole[0, :3], 1]] and mask.all()


def test_exact_fit_is_not_cut():
  ids, mask = _built_in().encode(['liver'], 40)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    fitting, _ = _built_in().encode(['liver'], int(mask.sum()))
  assert fitting.tolist() == [ids[mask].tolist()]


def test_case_does_not_count():
  ids, _ = _built_in().encode(['Left Kidney', 'LEFT KIDNEY', 'left kidney', 'Lᴇft Kidney'], 40)
  assert ids[0].tolist() == ids[1].tolist() == ids[2].tolist() != ids[3].tolist()


@hypothesis.given(st.text(min_size=1, max_size=20))
@hypothesis.example('肝臓 🫁')
@hypothesis.example('</s>')
@hypothesis.settings(deadline=None)
def test_nothing_is_unknown(text):
  try:
    ids, mask = _built_in().encode([text], 120)
  except ValueError as error:  # nothing but space and what Unicode ignores
    assert 'is empty' in str(error)
    assert not _pieces().normalize(text).strip()
    return
  assert tokenizer.UNK not in ids
  assert ids[mask].tolist().count(tokenizer.EOS) == 1  # not even a text that spells it makes one
  assert np.all(ids[mask] != tokenizer.PAD)


def test_built_in_vocabulary_covers_the_table():
  assert 300 < _built_in().vocab_size <= train_tokenizer.VOCAB_SIZE
  assert tokenizer.DEFAULT_MODEL.stat().st_size <= 300_000
  texts = [*prompts.training_prompts(), *(term.name for term in terms())]
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    ids, _ = _built_in().encode(texts, 32)
  assert not any(_pieces().is_byte(int(i)) for i in np.unique(ids))
  # Two different names never fall together.
  assert len({row.tobytes() for row in ids}) == len({_pieces().normalize(t) for t in texts})


def test_common_words_are_whole_and_others_are_spelled():
  def pieces(text):
    return _pieces().encode(text, out_type=str)

  assert pieces('A computerized tomography of the left kidney') == (
    ['▁a', '▁computerized', '▁tomography', '▁of', '▁the', '▁left', '▁kidney']
  )
  assert len(pieces('xylophone')) > 4
  words = [word for s in TEMPLATE for word in s.name.split()]
  assert sum(len(pieces(word)) for word in words) <= 1.2 * len(words)


def test_training_is_reproducible_and_takes_the_given_output(tmp_path, capsys):
  paths = tmp_path / 'a' / 'one.model', tmp_path / 'two.model'
  for path in paths:
    train_tokenizer.main(['--output', str(path)])
  assert paths[0].read_bytes() == paths[1].read_bytes()
  assert str(tmp_path).encode() not in paths[0].read_bytes()
  assert f'{paths[1].stat().st_size} bytes' in capsys.readouterr().out
  assert 300 < tokenizer.Tokenizer(paths[0]).vocab_size <= train_tokenizer.VOCAB_SIZE


def test_missing_file(tmp_path):
  with pytest.raises(tokenizer.TokenizerError, match='none.model: no tokenizer there'):
    tokenizer.Tokenizer(tmp_path / 'none.model')
  with pytest.raises(tokenizer.TokenizerError, match='no tokenizer there'):
    tokenizer.Tokenizer(tmp_path)


@pytest.mark.parametrize('content', [b'', b'garbage' * 100, None])
def test_corrupt_file(tmp_path, content):
  path = tmp_path / 'bad.model'
  path.write_bytes(tokenizer.DEFAULT_MODEL.read_bytes()[:3000] if content is None else content)
  with pytest.raises(tokenizer.TokenizerError, match='bad.model: not a SentencePiece model'):
    tokenizer.Tokenizer(path)


def test_foreign_special_ids(tmp_path):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(  # SentencePiece's defaults: unk 0, bos 1, eos 2
    sentence_iterator=iter(['left right liver kidney'] * 5),
    model_writer=model,
    vocab_size=40,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  path = tmp_path / 'foreign.model'
  path.write_bytes(model.getvalue())
  message = r'foreign.model: pad, eos and unk are \(-1, 2, 0\)'
  with pytest.raises(tokenizer.TokenizerError, match=message):
    tokenizer.Tokenizer(path)


@pytest.mark.parametrize(
  'texts, length, error, message',
  [
    ('liver', 8, TypeError, 'not one string'),
    ([], 8, ValueError, 'no prompts'),
    (['liver', ''], 8, ValueError, 'prompt 1 is empty'),
    (['liver', ' \t\n'], 8, ValueError, 'prompt 1 is empty'),
    (['liver'], 1, ValueError, 'max_length 1'),
  ],
)
def test_encode_names_what_is_wrong(texts, length, error, message):
  with pytest.raises(error, match=message):
    _built_in().encode(texts, length)
