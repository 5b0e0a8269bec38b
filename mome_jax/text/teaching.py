"""Teaching the small text encoder anatomy: its names, sides, and what contains what."""

import pathlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from input_pipeline import errors, progress, remarks
from input_pipeline.anatomy import TEMPLATE, vocabulary
from input_pipeline.anatomy.vocabulary import Term
from mome_jax import checkpoint
from mome_jax.configs import base
from mome_jax.text import anatomy_code, retrieval, train_tokenizer
from mome_jax.text.phrases import Phrases
from mome_jax.text.prompts import default_prompts, training_prompts
from mome_jax.text.t5 import TextEncoder, build_text_encoder
from mome_jax.text.text_model import TextModel
from mome_jax.text.tokenizer import Tokenizer

_TERMS = 96  # of a batch
_LENGTH = 24  # tokens of a phrase; few need more
_RATE = 3e-3
_EMBEDDING_RATE = 3.0  # relative; its numbers are ten times those of a matrix
_TEMPERATURE = 0.1
# Of embeddings. The first layer that reads them then starts with the spread that it has for one-hot
# vectors of seven classes, sqrt(128 / 7).
_NORM = 4.3


def pretrain(
  terms: Sequence[Term],
  pieces: Tokenizer,
  encoder: TextEncoder,
  *,
  steps: int,
  seed: int = 0,
  silent: Sequence[str] = (),
) -> Any:
  """Trains the encoder from random parameters.

  Args:
    terms: of the vocabulary.
    pieces: that the encoder reads.
    encoder: from `build_text_encoder`.
    steps: of training.
    seed: of parameters and phrases.
    silent: names of terms of which no phrase is shown.

  Returns:
    Its parameters, float32.
  """
  code = anatomy_code.Code.of(terms)
  text_key, code_key = jax.random.split(jax.random.key(seed))
  ids = jnp.ones((1, 2), jnp.int32)
  params = {
    'text': encoder.init(text_key, ids, ids > 0)['params'],
    'code': code.init(code_key, encoder.config.d_model),
  }
  optimizer = _optimizer(steps)
  state = optimizer.init(params)

  def loss_fn(params, ids, mask, rows):
    embeddings = cast(jax.Array, encoder.apply({'params': params['text']}, ids, mask))
    return anatomy_code.loss(embeddings, code(params['code']), rows, _TEMPERATURE)

  @jax.jit
  def step(params, state, ids, mask, rows):
    loss, gradient = jax.value_and_grad(loss_fn)(params, ids, mask, rows)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss

  phrases = Phrases(terms)
  shown = [row for row, term in enumerate(terms) if term.name not in silent]
  bar = progress.bar(range(steps), desc='pretrain')
  for number in bar:
    texts, rows = _batch(phrases, shown, np.random.default_rng([seed, number]))
    tokens, real = _encode(pieces, texts)
    params, state, loss = step(params, state, tokens, real, rows)
    if number % 20 == 0:
      bar.set_postfix(loss=f'{loss:.3f}')
  return params['text']


def _optimizer(steps: int) -> optax.GradientTransformation:
  schedule = optax.warmup_cosine_decay_schedule(0.0, _RATE, steps // 20, steps)
  rates = {'embed': _EMBEDDING_RATE, 'code': _EMBEDDING_RATE}

  def scale(updates, _):
    return jax.tree_util.tree_map_with_path(
      lambda path, u: u * max(rates.get(key.key, 1.0) for key in path), updates
    )

  return optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99), optax.stateless(scale)
  )


def _batch(
  phrases: Phrases, shown: Sequence[int], rng: np.random.Generator
) -> tuple[list[str], np.ndarray]:
  """Two phrases of each of some terms, and their rows; both sides of an organ come together."""
  organs: dict[str, list[int]] = {}
  for row in shown:
    organs.setdefault(phrases.terms[row].organ, []).append(row)
  families = list(organs.values())
  order = [row for at in rng.permutation(len(families)) for row in families[at]]
  rows = [order[at % len(order)] for at in range(_TERMS)] if len(order) < _TERMS else order[:_TERMS]
  texts = [phrases.draw(row, rng) for _ in range(2) for row in rows]
  return texts, np.array(rows, np.int32)


def _encode(pieces: Tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  with remarks.collected():  # the longest phrases are cut
    return pieces.encode(texts, _LENGTH)


def _left_out(terms: Sequence[Term]) -> list[str]:
  """The left one of every fifth pair."""
  return [term.name for term in terms if term.side == 'left'][::5]


def _scaled(params: Any, vectors: np.ndarray) -> Any:
  """The same encoder with embeddings of mean length `_NORM`: its last scale decides that."""
  factor = _NORM / np.linalg.norm(vectors, axis=1).mean()
  return params | {'final_norm': {'scale': params['final_norm']['scale'] * factor}}


def _report(model: TextModel, terms: Sequence[Term]) -> None:
  """Prints how well an encoder knows its words."""
  rows = retrieval.held_out(model, terms)
  right = sum(name == nearest for _, name, nearest in rows)
  print(f'names never shown: {right} of {len(rows)} nearest to their own structure')
  for name, expected, nearest in [row for row in rows if row[1] != row[2]][:10]:
    print(f'  {name}: {nearest}, not {expected}')
  names = TEMPLATE.names()
  classes = default_prompts(names)
  spreads = [
    retrieval.spread(prompt, model(training_prompts(names=[name])))
    for name, prompt in zip(names, model(classes), strict=True)
  ]
  print(f'spread of the phrases of a class: {np.mean(spreads):.3f}, at most {max(spreads):.3f}')
  for title, texts in (('terms', retrieval.prompts(terms)), ('classes', classes)):
    values = retrieval.geometry(model(texts))
    print(f'{len(texts)} {title}: {_listed(values)}')


def _listed(values: Mapping[str, float]) -> str:
  return ', '.join(f'{name} {value:.2f}' for name, value in values.items())


def run(
  output: pathlib.Path | None,
  *,
  steps: int,
  seed: int = 0,
  leave_out_sides: bool = False,
) -> None:
  """Teaches an encoder and prints what it knows.

  Args:
    output: model folder to write; None writes nothing.
    steps: of training.
    seed: of everything random.
    leave_out_sides: never show the left one of every fifth paired organ, and measure what is made
      of them; nothing is written then.

  Raises:
    UserError: if the folder cannot be written.
  """
  start = time.monotonic()
  terms = vocabulary.terms()
  config = base.get_config()
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / 'tokenizer.model'
    file.write_bytes(train_tokenizer.train(Phrases(terms).all(), config.text.vocab_size))
    pieces, encoder = Tokenizer(file), build_text_encoder(config.text)
    silent = _left_out(terms) if leave_out_sides else []
    params = pretrain(terms, pieces, encoder, steps=steps, seed=seed, silent=silent)
    model = TextModel(encoder, params, pieces, config.text.max_length)
    params = _scaled(params, model(retrieval.prompts(terms)))
    # As it is stored: half the size, and what is reported is what others get.
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    model = TextModel(
      encoder, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), pieces,
      config.text.max_length,
    )  # fmt: skip
    print(f'{pieces.vocab_size} pieces, {len(terms)} terms, {time.monotonic() - start:.0f} s')
    _report(model, terms)
    if silent:
      values = retrieval.sides(model, terms, silent)
      print(f'{len(silent)} left sides never shown: ' + _listed(values))
    elif output:
      with errors.writing(output):
        checkpoint.save_model(output, config, {'text': params}, tokenizer=file)
      print(f'{output}: {encoder.config.d_model}-wide text encoder')
