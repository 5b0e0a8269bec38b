"""How well an encoder knows its words: names it never saw, sides, and how far apart classes are."""

from collections.abc import Callable, Sequence

import numpy as np

from input_pipeline.anatomy.vocabulary import Term
from mome_jax.text.vectors import unit

Embed = Callable[[Sequence[str]], np.ndarray]  # K texts -> (K, d) float32
_PROMPT = 'A computerized tomography of the {}'


def prompts(terms: Sequence[Term]) -> list[str]:
  """A sentence for each term."""
  return [_PROMPT.format(term.name) for term in terms]


def held_out(embed: Embed, terms: Sequence[Term]) -> list[tuple[str, str, str]]:
  """(name never shown, its term, the term nearest to it) for every held-out name.

  Nearest is the greatest cosine similarity to the terms' prompts.
  """
  asked = [(name, term.name) for term in terms for name in term.held_out]
  if not asked:
    return []
  similarity = unit(embed([name for name, _ in asked])) @ unit(embed(prompts(terms))).T
  nearest = similarity.argmax(1)
  return [(*pair, terms[row].name) for pair, row in zip(asked, nearest, strict=True)]


def sides(embed: Embed, terms: Sequence[Term], left_out: Sequence[str]) -> dict[str, float]:
  """What an encoder makes of the sides of organs that it knows on the other side only.

  Args:
    embed: the encoder.
    terms: of the vocabulary.
    left_out: names of terms that it was never shown.

  Returns:
    'retrieved': share of them whose nearest code is their own, where the code of a term that was
    left out is made by analogy: its other side, and the mean step from there to here of the pairs
    that were shown; 'step': mean cosine similarity of their step between the sides to that mean.
  """
  names = [term.name for term in terms]
  vectors = embed(prompts(terms))
  pairs = [
    (names.index(f'right {term.organ}'), row)
    for row, term in enumerate(terms)
    if term.side == 'left' and term.name == f'left {term.organ}' and f'right {term.organ}' in names
  ]
  steps = {left: vectors[left] - vectors[right] for right, left in pairs}
  shown = [step for left, step in steps.items() if names[left] not in left_out]
  mean = np.mean(shown, axis=0)
  codes, asked = vectors.copy(), []
  for right, left in pairs:
    if names[left] in left_out:
      codes[left] = vectors[right] + mean
      asked.append(left)
  nearest = (unit(vectors[asked]) @ unit(codes).T).argmax(1)
  return {
    'retrieved': float((nearest == asked).mean()),
    'step': float(np.mean([unit(steps[left]) @ unit(mean) for left in asked])),
  }


def spread(prompt: np.ndarray, phrases: np.ndarray) -> float:
  """How far other phrases of a class are from its prompt, which a network reads as noise.

  Args:
    prompt: (d,), its embedding.
    phrases: (P, d), theirs.

  Returns:
    The mean of their squared distances over the squared length of the prompt's; one-hot vectors
    have 0.
  """
  return float(np.sum((phrases - prompt) ** 2, axis=1).mean() / np.sum(prompt**2))


def geometry(vectors: np.ndarray) -> dict[str, float]:
  """How far apart K embeddings (K, d) are.

  Returns:
    'norm', their mean length; 'mean_cosine' and 'greatest_cosine' of two of them; 'condition', the
    ratio of the largest to the smallest singular value; one-hot vectors have 1, 0, 0 and 1.
  """
  cosine = unit(vectors) @ unit(vectors).T
  others = cosine[~np.eye(len(vectors), dtype=bool)]
  values = np.linalg.svd(vectors, compute_uv=False)
  return {
    'norm': float(np.linalg.norm(vectors, axis=1).mean()),
    'mean_cosine': float(others.mean()),
    'greatest_cosine': float(others.max()),
    'condition': float(values[0] / values[-1]),
  }
