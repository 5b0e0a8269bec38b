"""Trains a vocabulary on the names of anatomy and the sentences of prompts.

  python -m mome_jax.text.train_tokenizer --output=tokenizer.model

Takes a few seconds. The same names give the same bytes. Weights trained with one vocabulary are
useless with another: `python -m mome_jax.text.pretrain` makes the built-in one and its encoder
together.
"""

import argparse
import io
import pathlib
import string
import sys
from collections.abc import Sequence

import sentencepiece

from input_pipeline import errors
from input_pipeline.anatomy import vocabulary
from input_pipeline.cli import Parser, dashed
from mome_jax.text import phrases, tokenizer

VOCAB_SIZE = 2048


def train(sentences: Sequence[str], vocab_size: int = VOCAB_SIZE) -> bytes:
  """Trains a unigram model with T5's special ids, case folding, and bytes for unseen characters.

  Args:
    sentences: list of training texts.
    vocab_size: most pieces, of which 256 are bytes; fewer if the texts have no more to give.

  Returns:
    The serialized SentencePiece model.
  """
  model = io.BytesIO()
  # The trainer considers only pieces that occur in two different words. The hyphenated copy makes
  # every whole word one of them; without it 'of' and 'computerized' fall into syllables.
  hyphenated = [' '.join(f'{word}-' for word in text.split()) for text in sentences]
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([*sentences, *hyphenated]),
    model_writer=model,
    model_type='unigram',
    vocab_size=vocab_size,
    hard_vocab_limit=False,
    pad_id=tokenizer.PAD,
    eos_id=tokenizer.EOS,
    unk_id=tokenizer.UNK,
    bos_id=-1,
    byte_fallback=True,
    # Letters that no name of the table holds would otherwise cost a byte token each.
    required_chars=string.ascii_lowercase + string.digits + "-/,.()?'_",
    normalization_rule_name='nmt_nfkc_cf',
    num_threads=1,  # the order of summation over threads would change the last bits of the scores
    minloglevel=2,
  )
  return model.getvalue()


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(prog='python -m mome_jax.text.train_tokenizer', description=__doc__)
  parser.add_argument('--output', type=pathlib.Path, required=True, help='file to write')
  return parser


@errors.command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  output = make_parser().parse_args(dashed(argv)).output
  sentences = phrases.Phrases(vocabulary.terms()).all()
  model = train(sentences)
  with errors.writing(output):
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(model)
  print(f'{output}: {len(model)} bytes from {len(sentences)} phrases')
  return 0


if __name__ == '__main__':
  sys.exit(main())
