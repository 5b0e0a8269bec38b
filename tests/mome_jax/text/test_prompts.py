import pytest

from input_pipeline.anatomy import TEMPLATE, ClassError
from mome_jax.text import prompts

NAMES = TEMPLATE.names()


def test_default_prompts():
  assert prompts.default_prompts(['liver'])[0] == 'A computerized tomography of a liver'
  assert prompts.default_prompts(NAMES) == [s.prompt for s in TEMPLATE]
  with pytest.raises(ClassError, match='liver'):
    prompts.default_prompts(['livr'])


def test_default_prompts_are_among_those_seen_in_training():
  assert set(prompts.default_prompts(NAMES)) <= set(prompts.training_prompts())


def test_held_out_prompts_were_never_trained_on():
  held_out = prompts.held_out_prompts(NAMES)
  assert held_out[TEMPLATE.get('liver').index - 1] == 'hepatic tissue'
  seen = ' | '.join(prompts.training_prompts()).casefold()
  assert not [prompt for prompt in held_out if prompt.casefold() in seen]
  template = TEMPLATE.extend([{'name': 'metastasis', 'parent': 'liver'}])
  with pytest.raises(prompts.PromptError, match='metastasis: no held_out names'):
    prompts.held_out_prompts(['metastasis'], template)


def test_phrase_takes_the_article_of_the_canonical_name_only():
  liver = TEMPLATE.get('liver')
  assert prompts.phrase('A CT of {noun}', liver, 'liver') == 'A CT of a liver'
  assert prompts.phrase('A CT of {noun}', liver, 'hepar') == 'A CT of the hepar'
  assert prompts.phrase('{name} on CT', liver, 'hepar') == 'hepar on CT'


def test_sampling_depends_on_seed_and_step_and_nothing_else():
  first = prompts.sample_prompts(NAMES, seed=3, step=7)
  assert len(first) == len(NAMES) and all(type(p) is str for p in first)
  assert prompts.sample_prompts(NAMES, seed=3, step=7) == first
  assert prompts.sample_prompts(NAMES, seed=3, step=8) != first
  assert prompts.sample_prompts(NAMES, seed=4, step=7) != first
  # (seed, step) is a pair: a run must not replay its neighbour one step shifted.
  assert prompts.sample_prompts(NAMES, seed=4, step=6) != first


def test_a_class_draws_the_same_in_any_company():
  together = dict(zip(NAMES, prompts.sample_prompts(NAMES, seed=0, step=5), strict=True))
  for name in NAMES:
    assert prompts.sample_prompts([name], seed=0, step=5) == [together[name]]
  backwards = prompts.sample_prompts(NAMES[::-1], seed=0, step=5)
  assert backwards == [together[name] for name in NAMES[::-1]]


def test_half_of_the_draws_are_the_default_prompt_and_the_rest_equally_frequent():
  liver = TEMPLATE.get('liver')
  names = {liver.name, *liver.synonyms}
  possible = {prompts.phrase(s, liver, n) for s in prompts.SENTENCES for n in names}
  draws = [prompts.sample_prompts(['liver'], seed=0, step=i)[0] for i in range(80 * len(possible))]
  counts = {p: draws.count(p) for p in possible}
  assert sum(counts.values()) == len(draws)
  assert abs(counts.pop(liver.prompt) / len(draws) - 0.5) < 0.03
  # 40 expected, standard deviation 6.3: four of them on either side.
  assert min(counts.values()) > 14 and max(counts.values()) < 66


def test_held_out_synonyms_never_appear():
  held_out = {
    prompts.phrase(sentence, structure, name)
    for structure in TEMPLATE
    for name in structure.held_out
    for sentence in prompts.SENTENCES
  }
  training = set(prompts.training_prompts())
  assert len(held_out) >= len(TEMPLATE) * len(prompts.SENTENCES)
  assert not held_out & training
  for step in range(50):
    assert set(prompts.sample_prompts(NAMES, seed=1, step=step)) <= training


def test_training_prompts_name_one_class_each():
  assert len(set(prompts.training_prompts())) == len(prompts.training_prompts())


def test_sentences_hold_one_name():
  assert len(set(prompts.SENTENCES)) == len(prompts.SENTENCES)
  for sentence in prompts.SENTENCES:
    assert sentence.count('{name}') + sentence.count('{noun}') == 1
    assert sentence.format(name='', noun='') == sentence.replace('{name}', '').replace('{noun}', '')


@pytest.mark.parametrize(
  'text, expected',
  [
    ('liver, left kidney', ['liver', 'left kidney']),
    ('liver', ['liver']),
    ('  Right   Lung ,\tIVC', ['Right Lung', 'IVC']),
  ],
)
def test_parse_prompts(text, expected):
  assert prompts.parse_prompts(text) == expected


@pytest.mark.parametrize(
  'text, message',
  [
    ('', 'an empty one'),
    (' , ', 'an empty one'),
    ('liver,,spleen', 'an empty one'),
  ],
)
def test_parse_prompts_names_what_is_wrong(text, message):
  with pytest.raises(prompts.PromptError, match=message):
    prompts.parse_prompts(text)
