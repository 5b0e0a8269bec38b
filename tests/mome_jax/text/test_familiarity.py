"""What a model was trained on is told from all else, as well as it is calibrated to."""

import json
import unicodedata

import numpy as np
import pytest
from scipy import special

from input_pipeline.anatomy import TEMPLATE, vocabulary
from mome_jax import checkpoint, shipped
from mome_jax.text import calibrate, other_words
from mome_jax.text.familiarity import (
  FEATURES,
  Calibration,
  Comparison,
  Familiarity,
  Likeness,
  features,
  shipped_calibration,
)

SEVEN = (
  'brainstem', 'spinal cord', 'right parotid', 'left parotid', 'larynx', 'mandible', 'esophagus'
)  # fmt: skip


@pytest.fixture(scope='module')
def embed():
  return checkpoint.load_text_encoder()


@pytest.fixture(scope='module')
def compare(embed):
  return Comparison(vocabulary.read(), embed)


@pytest.fixture(scope='module')
def trials(compare):
  return calibrate.Trials(compare, testing=True)


@pytest.fixture(scope='module')
def judges(embed):
  return Familiarity(SEVEN, embed=embed)


def test_other_words_name_nothing_of_the_vocabulary():
  terms = vocabulary.read()
  texts = [text for _, text in other_words.read()]
  assert len({text.casefold() for text in texts}) == len(texts) > 700
  for text in texts:
    plain = ''.join(c for c in unicodedata.normalize('NFKD', text) if not unicodedata.combining(c))
    assert terms.find(text) is terms.find(plain) is None, text
  testing = [other_words.is_for_testing(text) for text in texts]
  assert 0.4 < np.mean(testing) < 0.6
  assert other_words.is_for_testing('MRI') == other_words.is_for_testing('mri')


def test_features_of_a_likeness():
  cosine = np.array([[0.9, 0.3, 0.5]], np.float32)
  likeness = Likeness(
    cosine=cosine,
    closeness=np.exp(np.array([[[8.0, 3.0, 5.0]], [[10.0, 3.0, 5.0]]], np.float32)),
    words=np.array([[0.2, 0.7, 0.6]], np.float32),
    strangeness=np.array([0.25], np.float32),
    precision=np.array([0.75], np.float32),
  )
  odds = [
    special.logsumexp([8, 5]) - 3,
    special.logsumexp([10, 5]) - 3,
  ]
  expected = {
    'nearness': 0.9,
    'margin': 0.6,
    'odds': np.mean(odds),
    'disagreement': abs(odds[1] - odds[0]) / 2,
    'words': 0.6,
    'words_margin': -0.1,
    'strangeness': 0.25,
    'precision': 0.75,
  }
  [row] = features(likeness, np.array([True, False, True]))
  assert dict(zip(FEATURES, row, strict=True)) == pytest.approx(expected, abs=1e-5)


def test_familiarity_and_verdict_of_a_calibration():
  calibration = Calibration((1.0, *[0.0] * (len(FEATURES) - 1), -0.5), known=0.6, near=0.4)
  values = np.zeros((3, len(FEATURES)))
  values[:, 0] = 0.5, 0.0, 1.5
  scores = calibration.familiarity(values)
  np.testing.assert_allclose(scores, special.expit([0.0, -0.5, 1.0]), rtol=1e-6)
  assert [calibration.verdict(score) for score in scores] == [
    'near',
    'unfamiliar',
    'known',
  ]
  assert [calibration.verdict(at) for at in (0.6, 0.4, 0.39)] == ['known', 'near', 'unfamiliar']
  assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration


def test_thresholds_balance_both_errors():
  familiar, foreign = np.linspace(0.3, 0.9, 601), np.linspace(0.1, 0.5, 401)
  near, known = calibrate._thresholds(familiar, foreign, np.ones(601), np.ones(401))
  # (t - 0.3) / 0.6 = (0.5 - t) / 0.4 at t = 0.42; all but 0.3 % of what is foreign is below 0.4988.
  assert near == pytest.approx(0.42, abs=0.002)
  assert known == pytest.approx(0.499, abs=0.002)


def test_logistic_regression_finds_the_weights_that_made_the_data():
  rng = np.random.default_rng(0)
  true = rng.normal(size=len(FEATURES) + 1)
  values = rng.normal(size=(20000, len(FEATURES)))
  chance = special.expit(values @ true[:-1] + true[-1])
  familiar = rng.random(20000) < chance
  weights = calibrate._fit(values, familiar, np.full(20000, 1 / 20000))
  fitted = special.expit(values @ np.array(weights[:-1]) + weights[-1])
  assert np.abs(fitted - chance).mean() < 0.05  # the ridge draws it to the middle
  assert np.corrcoef(fitted, chance)[0, 1] > 0.99


def test_the_calibration_is_of_what_is_shipped(compare, embed):
  made = calibrate.made_of(compare, embed)
  assert shipped_calibration().made_of == made, 'run python -m mome_jax.text.calibrate'
  assert shipped_calibration().near <= shipped_calibration().known
  assert shipped.FAMILIARITY.read_text().endswith('}\n')


def test_trials_are_of_one_half(trials):
  assert all(other_words.is_for_testing(prompt) for prompt in trials.prompts)
  assert len(trials.prompts) > 900
  assert set(trials.kinds) == {'held-out', *(kind for kind, _ in other_words.read())}


@pytest.mark.parametrize('classes', [SEVEN, TEMPLATE.names()[:32]], ids=['shipped', 'paper'])
def test_rates_of_the_testing_half(compare, trials, classes):
  trained = np.array([term.name in classes for term in compare.terms])
  values, familiar, _ = trials.of(trained)
  scores = shipped_calibration().familiarity(values)
  assert (scores[familiar] >= shipped_calibration().near).mean() >= 0.95
  assert (scores[~familiar] < shipped_calibration().near).mean() >= 0.95


def test_rates_for_random_classes(compare, trials):
  accepted, refused = [], []
  for trained in calibrate.random_sets(40, len(compare.terms), seed=5):
    values, familiar, _ = trials.of(trained)
    scores = shipped_calibration().familiarity(values)
    if familiar.any():
      accepted.append((scores[familiar] >= shipped_calibration().near).mean())
      refused.append((scores[~familiar] < shipped_calibration().near).mean())
  assert np.mean(accepted) >= 0.95
  assert np.mean(refused) >= 0.95


def test_trials_ask_nothing_of_parts_and_wholes(compare, trials):
  trained = np.array([term.name == 'brainstem' for term in compare.terms])
  _, familiar, rows = trials.of(trained)
  asked = {trials.prompts[row] for row in rows}
  for part in ('pons', 'midbrain', 'brain'):
    assert not asked & set(compare.terms.get(part).held_out)
  names = compare.terms.get('brainstem').held_out
  expected = {name for name in names if other_words.is_for_testing(name)}
  assert {trials.prompts[row] for row in rows[familiar]} == expected


def test_verdicts_for_the_shipped_model(judges):
  prompts = ['left parotid', 'bone of the lower jaw', 'segment the spinal cord', 'pineapple pizza',
             'liver', 'tumor', 'GTV', 'Leber', '肝臓', '42', '?']  # fmt: skip
  judgements = judges.judge(prompts)
  assert [one.verdict for one in judgements] == ['known'] * 3 + ['unfamiliar'] * 8
  assert [one.nearest for one in judgements[:3]] == ['left parotid', 'mandible', 'spinal cord']
  assert [one.meaning for one in judgements[3:7]] == ['', 'liver', 'tumor', 'gross tumor volume']
  assert [one.familiarity for one in judgements[4:7]] == [0, 0, 0]
  assert judges.judge([]) == []


def test_the_nearest_class_is_not_of_the_other_side(judges, embed):
  texts = ['stem cell region of left parotid', 'stem cell region of right parotid']
  assert [one.nearest for one in judges.judge(texts)] == ['left parotid', 'right parotid']
  assert judges.judge(['left ramus of mandible'])[0].nearest == 'mandible'
  one_sided = Familiarity(('right parotid',), embed=embed)
  assert one_sided.judge(['left parotid gland duct'])[0].nearest == 'right parotid'


def test_without_looking_up_the_score_alone_decides(judges):
  prompts = ['left parotid', 'liver', 'lower jaw bone']
  judgements = judges.judge(prompts, look_up=False)
  assert [one.verdict for one in judgements] == ['known', 'unfamiliar', 'known']
  assert [one.meaning for one in judgements] == [''] * 3
  np.testing.assert_allclose([one.familiarity for one in judgements], judges.score(prompts))
  assert all(0 < one.familiarity < 1 for one in judgements)


def test_a_prompt_is_judged_alike_in_any_company(judges):
  alone = [judges.judge([prompt], look_up=False)[0] for prompt in ('jaw bone', 'pizza')]
  together = judges.judge(['jaw bone', *['voice box'] * 40, 'pizza'], look_up=False)
  for one, other in zip(alone, (together[0], together[-1]), strict=True):
    assert one.familiarity == pytest.approx(other.familiarity, abs=1e-5)
    assert one.nearest == other.nearest


def test_new_classes_are_known(embed):
  template = TEMPLATE.extend(
    [{'name': 'thyroid', 'synonyms': ['thyroid tissue']}, {'name': 'blorptissue'}]
  )
  judges = Familiarity(['thyroid', 'blorptissue'], template, embed=embed)
  asked = ['glandula thyroidea', 'the blorptissue', 'liver', 'pineapple pizza']
  verdicts = [one.verdict for one in judges.judge(asked)]
  assert verdicts == ['known', 'known', 'unfamiliar', 'unfamiliar']
