"""Which masks are called implausible, and why."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

from input_pipeline.patients import patient_folds
from mome_jax.plausibility import learn
from mome_jax.plausibility.judge import (
  ELSEWHERE,
  FOREIGN,
  OUTSIDE,
  SPECK,
  UNSEEN,
  choose,
  judge,
)
from mome_jax.plausibility.measures import MASK, SCAN, SURROUNDINGS, Look, Scene
from mome_jax.plausibility.record import FILE, Range, RecordError, read, write

CLASSES = ('head', 'heart', 'foot')
PLACES = {'head': (0, 0, 300), 'heart': (-30, 20, 0), 'foot': (50, 40, -300)}
VOLUMES = {'head': 1000, 'heart': 500, 'foot': 50}


class Person:
  """The scans of a person: what they show, and the masks in them."""

  def __init__(self, seed=0, scan=1.0):
    self.rng = np.random.default_rng(seed)
    self.values = {
      name: scan * (300 if name.endswith('cm2') else 0.2) * self.noise() for name in SCAN
    }
    self.seen = np.array([[-250, 250], [-250, 250], [-500, 500]])

  def noise(self):
    return math.exp(0.1 * self.rng.normal())

  def look(self, name, *, move=(0, 0, 0), cut=False, **changes):
    """A mask of a class as training has it, but for `changes` and where it is moved."""
    values = {share: 0.2 * self.noise() for share in SURROUNDINGS}
    values |= {
      'volume_ml': VOLUMES[name] * self.noise(),
      'section_mm2': 900 * self.noise(),
      'mean_hu': 40 + 5 * self.rng.normal(),
      'hu_sd': 20 * self.noise(),
      'largest_piece': 1.0,
      'right': 0.1 * self.rng.normal(),
      'anterior': 0.1 * self.rng.normal(),
      'body_cm2': 500 * self.noise(),
    }
    assert set(values) == set(MASK)
    centre = np.add(PLACES[name], move) + 5 * self.rng.normal(size=3)
    return Look({**values, **changes}, tuple(centre.tolist()), {}, cut)

  def looks(self, **changes):
    return {name: self.look(name, **changes.get(name, {})) for name in CLASSES}


def training(count=60, **changes):
  scans = []
  for seed in range(count):
    person = Person(seed)
    looks = person.looks(**changes)
    who = f'patient {seed}'
    scans.append(learn.TrainingLook(person.values, frozenset(CLASSES), looks, frozenset(), who))
  return scans


@pytest.fixture(scope='module')
def record():
  return learn.learn(training(), CLASSES, (4, 4, 3))


def told(record, person=None, **changes):
  person = person or Person(1000)
  return judge(person.looks(**changes), person, record)


def test_few_right_masks_are_called_wrong(record):
  verdicts = [v for n in range(60) for v in told(record, Person(2000 + n)).verdicts.values()]
  assert np.mean([not verdict.plausible for verdict in verdicts]) <= 0.02
  assert not any(told(record, Person(2000 + n)).foreign for n in range(60))
  masks, implausible = (sum(record.left_out[key].values()) for key in ('masks', 'implausible'))
  assert masks == 3 * 60 and implausible <= 0.02 * masks


def test_the_labels_of_a_training_scan_like_no_other_are_counted():
  """At a tolerance that calls all three implausible, and at the one that is chosen."""
  person, away = Person(60), {'mean_hu': 900.0}
  looks = person.looks(head=away, heart=away, foot=away)
  odd = learn.TrainingLook(person.values, frozenset(CLASSES), looks, frozenset(), 'odd')
  record = learn.learn([*training(), odd], CLASSES, (4, 4, 3))
  assert record.left_out['masks'] == dict.fromkeys(CLASSES, 61)
  assert sum(record.left_out['implausible'].values()) == 1  # a hundredth of 183
  assert record.tolerance > 3.5


@pytest.mark.parametrize(
  ('change', 'reason'),
  [
    ({'volume_ml': 5000.0}, 'volume 5000 ml'),
    ({'volume_ml': 20.0}, 'volume 20 ml'),
    ({'section_mm2': 90.0}, 'mean axial section 90 mm2'),
    ({'mean_hu': -400.0}, 'mean -400 HU'),
    ({'right': 2.0}, 'lies too far right in the body'),
    ({'right': -2.0}, 'lies too far left in the body'),
    ({'anterior': -2.0}, 'lies too far posterior in the body'),
    ({'largest_piece': 0.4}, 'in pieces: the largest is 40 % of it, 100 % in training'),
    ({'bone_0_10_mm': 0.9}, 'bone within 10 mm: 90 %'),
    ({'air_10_30_mm': 0.0}, 'air from 10 to 30 mm: 0 %'),
    ({'move': (0, 0, 200)}, 'mm superior of the'),
    ({'move': (-200, 0, 0)}, 'mm left of the'),
  ],
)
def test_an_odd_mask_is_called_so_and_no_other(record, change, reason):
  judgement = told(record, heart=change)
  verdict = judgement.verdicts['heart']
  assert verdict.plausible is False and not verdict.absent
  assert reason in verdict.reasons[0]
  assert [judgement.verdicts[name].plausible for name in ('head', 'foot')] == [True, True]
  assert not judgement.foreign


def test_a_cut_organ_may_be_small_but_not_large(record):
  assert told(record, heart={'volume_ml': 20.0, 'cut': True}).verdicts['heart'].plausible
  verdict = told(record, heart={'volume_ml': 5000.0, 'cut': True}).verdicts['heart']
  assert (verdict.plausible, verdict.cut) == (False, True)


def test_where_the_scan_ends_in_an_organ_its_height_is_not_known(record):
  assert told(record, heart={'move': (0, 0, 150), 'cut': True}).verdicts['heart'].plausible
  assert not told(record, heart={'move': (150, 0, 0), 'cut': True}).verdicts['heart'].plausible


def test_partly_labelled_classes_are_not_judged_by_volume_or_height():
  scans = [dataclasses.replace(scan, partial=frozenset({'heart'})) for scan in training()]
  record = learn.learn(scans, CLASSES, (4, 4, 3))
  changed = {'volume_ml': 5000.0, 'move': (0, 0, 150)}
  assert told(record, heart=changed).verdicts['heart'].plausible
  assert not told(record, heart={'move': (0, 150, 0)}).verdicts['heart'].plausible


def test_cut_labels_do_not_lower_the_range_of_volumes():
  scans = training(30) + training(30, heart={'volume_ml': 5.0, 'cut': True})
  known = learn.learn(scans, CLASSES, (4, 4, 3)).classes['heart']
  assert (known.cases, known.cut) == (60, 30)
  assert known.values['volume_ml'].low > 300


def test_what_lies_beyond_the_scan_is_outside_the_field_of_view(record):
  person = Person(1000)
  person.seen = np.array([[-250, 250], [-250, 250], [-150, 500]])  # it ends above the feet
  verdicts = judge(person.looks(foot={'volume_ml': 3.0}), person, record).verdicts
  assert verdicts['foot'].absent and verdicts['foot'].reasons[0] == OUTSIDE
  assert 'volume 3 ml' in verdicts['foot'].reasons[1]
  assert verdicts['head'].plausible and verdicts['heart'].plausible


def test_a_scan_of_something_else(record):
  odd = {'mean_hu': 900.0}
  judgement = told(record, Person(1000, scan=4.0), head=odd, heart=odd)
  assert judgement.foreign and 'fat in the body' in judgement.reasons[0]
  assert [verdict.plausible for verdict in judgement.verdicts.values()] == [False] * 3
  head = judgement.verdicts['head']
  assert head.absent and judgement.verdicts['heart'].absent
  # It may well be in view: it only looks like none.
  assert head.reasons[0] == FOREIGN and '900 HU' in head.reasons[1]
  # The foot looks like one: it may be there, in a scan that nobody should trust.
  assert not judgement.verdicts['foot'].absent
  assert judgement.verdicts['foot'].reasons == (FOREIGN,)
  # A class without ranges is no exception.
  odd_scan = Person(1000, scan=4.0)
  looks = odd_scan.looks(head=odd, heart=odd)
  verdict = judge(looks | {'tumor': looks['foot']}, odd_scan, record).verdicts['tumor']
  assert (verdict.plausible, verdict.reasons, verdict.absent) == (False, (FOREIGN,), False)
  person = Person(1000)
  verdicts = judge(person.looks() | {'tumor': looks['foot']}, person, record).verdicts
  assert verdicts['tumor'].plausible is None
  # Of another size alone, with every organ in its place: a scan of the whole body.
  assert not told(record, Person(1000, scan=4.0)).foreign
  # Two odd masks alone: the scan is as it should be.
  assert not told(record, Person(1000), head=odd, heart=odd).foreign
  assert told(record, Person(1000), head=odd, heart=odd, foot=odd).foreign


def test_unknown_classes_have_no_verdict(record):
  person = Person(1000)
  looks = {**person.looks(), 'tail': person.look('foot', cut=True)}
  verdict = judge(looks, person, record).verdicts['tail']
  assert (verdict.plausible, verdict.reasons, verdict.cut) == (None, (), True)


def test_no_patient_in_the_scan(record):
  scene = Scene(np.full((9, 9, 9), -1000.0), (4, 4, 3))
  judgement = judge({}, scene, record)
  assert judgement.foreign and judgement.reasons == ('no patient is to be seen in it',)


def test_of_two_that_disagree_the_one_that_contradicts_most_goes(record):
  judgement = told(record, head={'move': (120, 0, 0)})
  assert [name for name in CLASSES if not judgement.verdicts[name].plausible] == ['head']
  assert 'mm right of the' in judgement.verdicts['head'].reasons[0]


def test_a_speck_beyond_the_scan_is_outside_the_field_of_view(record):
  person = Person(1000)
  looks = {name: look for name, look in person.looks().items() if name != 'foot'}
  person.seen = np.array([[-250, 250], [-250, 250], [-150, 500]])  # it ends above the feet
  speck = judge(looks, person, record, ['foot']).verdicts['foot']
  assert speck.absent and speck.reasons == (OUTSIDE, SPECK)
  person.seen[2] = -500, 500
  speck = judge(looks, person, record, ['foot']).verdicts['foot']
  assert not speck.plausible and not speck.absent and speck.reasons == (SPECK,)


# ---------------------------------------------------------------------------- the tolerance
def called_implausible(scans, record):
  """Of training labels, judged by the patients of other folds as a prediction is judged."""
  dealt = patient_folds.deal((scan.patient for scan in scans), 5)
  count = 0
  for fold in range(5):
    known = learn.learn([s for s in scans if dealt[s.patient] != fold], CLASSES, (4, 4, 3))
    known = dataclasses.replace(known, tolerance=record.tolerance)
    for scan in (s for s in scans if dealt[s.patient] == fold):
      scene = Person()
      scene.values = scan.scan
      verdicts = judge(scan.looks, scene, known).verdicts.values()
      count += sum(verdict.plausible is False for verdict in verdicts)
  return count


def test_the_tolerance_is_that_of_the_rule_that_judges():
  """One pair that disagrees is enough for it, whatever the median of the others."""
  scans = training(300)
  for number in range(12):
    side = 34 * (-1) ** number  # each is as far from the heart as it may be
    person = Person(5000 + number)
    looks = person.looks(head={'move': (side, 0, 0)}, foot={'move': (-side, 0, 0)})
    scans[25 * number] = dataclasses.replace(scans[25 * number], looks=looks)
  record = learn.learn(scans, CLASSES, (4, 4, 3))
  told = called_implausible(scans, record)
  assert told == sum(record.left_out['implausible'].values()) <= 0.01 * 3 * len(scans)
  assert record.tolerance > 3.5
  lower = dataclasses.replace(record, tolerance=record.tolerance - 0.02)
  assert called_implausible(scans, lower) > 0.01 * 3 * len(scans)


def test_scans_of_one_patient_are_left_out_together():
  """Or else each would vouch for the others: a tenth of the scans are of one odd patient."""
  scans = training(120)
  odd = [
    dataclasses.replace(scan, patient='odd', looks=Person(n).looks(heart={'mean_hu': 100.0 + n}))
    for n, scan in enumerate(scans[:12])
  ]
  together = learn.learn(odd + scans[12:], CLASSES, (4, 4, 3))
  apart = [dataclasses.replace(s, patient=f'odd {n}') for n, s in enumerate(odd)] + scans[12:]
  assert learn.learn(apart, CLASSES, (4, 4, 3)).tolerance == 3.5
  assert together.tolerance > 6


# ---------------------------------------------------------------------------- the record
def test_how_far_outside_a_range():
  # Quantiles of a normal distribution: 4.107 standard deviations between 2 % and 98 %.
  span = Range(-20.535, 0, 20.535)
  assert span.excess('mean_hu', 0) == span.excess('mean_hu', 20.535) == 0
  assert span.excess('mean_hu', 40.535) == pytest.approx(2, rel=1e-3)
  assert span.excess('mean_hu', -30.535) == pytest.approx(-1, rel=1e-3)
  assert Range(5, 5, 5).excess('mean_hu', 15) == pytest.approx(2)  # floor of 5 HU
  volume = Range(math.exp(-0.41068), 1, math.exp(0.41068))  # sd 0.2 of the logarithm
  assert volume.excess('volume_ml', math.exp(0.41068 + 0.6)) == pytest.approx(3, rel=1e-3)


def test_the_range_of_a_sample():
  values = np.arange(101.0)
  assert Range.of(values) == Range(2, 50, 98)


def test_the_record_comes_back(record, tmp_path):
  assert read(tmp_path) == ()
  other = dataclasses.replace(record, sources=('legs',), absent=('head',))
  write(tmp_path, [record, other])
  assert read(tmp_path) == (record, other)


def test_a_new_record_takes_the_place_of_the_old_one_in_one_step(record, tmp_path):
  (tmp_path / FILE).write_text('the old one')
  (tmp_path / 'before').hardlink_to(tmp_path / FILE)
  write(tmp_path, [record])
  assert (tmp_path / 'before').read_text() == 'the old one'
  assert read(tmp_path)


def test_a_record_of_the_first_version_is_one_region(record, tmp_path):
  write(tmp_path, [record])
  [region] = json.loads((tmp_path / FILE).read_text())['regions']
  del region['sources'], region['absent']
  (tmp_path / FILE).write_text(json.dumps({'version': 1, **region}))
  assert read(tmp_path) == (dataclasses.replace(record, sources=()),)


@pytest.mark.parametrize(
  'text', ['', '[]', '{"version": 3}', '{"version": 2}', '{"version": 1, "classes": {}}']
)
def test_a_damaged_record_is_told(tmp_path, text):
  (tmp_path / FILE).write_text(text)
  with pytest.raises(RecordError, match='make it again with python -m mome_jax.plausibility'):
    read(tmp_path)


def test_classes_of_too_few_labels_have_no_ranges():
  assert not learn.learn(training(9), CLASSES, (4, 4, 3)).classes
  scans = training(30)
  few = [
    dataclasses.replace(s, looks={n: look for n, look in s.looks.items() if n != 'foot'})
    for s in scans[9:]
  ]
  record = learn.learn(scans[:9] + few, CLASSES, (4, 4, 3))
  assert set(record.classes) == {'head', 'heart'}
  assert 'foot' not in record.classes['head'].offsets


def test_organs_and_what_is_there_now_and_then():
  scans = training(60)
  rare = [
    dataclasses.replace(s, looks={n: look for n, look in s.looks.items() if n != 'foot'})
    for s in scans[20:]
  ]
  record = learn.learn(scans[:20] + rare, CLASSES, (4, 4, 3))
  assert [record.classes[name].usual for name in CLASSES] == [True, True, False]
  assert (record.classes['foot'].cases, record.classes['foot'].supervised) == (20, 60)


# ---------------------------------------------------------------------------- several regions
def legs(count=4):
  """Scans of another part of the body: more of the patient in a slice, and no head."""
  return [
    learn.TrainingLook(
      Person(500 + n, scan=3.0).values,
      frozenset(CLASSES),
      {'foot': Person(500 + n).look('foot')},
      frozenset(),
      f'walker {n}',
      'legs',
      frozenset({'head'}),
    )
    for n in range(count)
  ]


def test_sources_that_contradict_each_other_are_regions():
  trunks = [dataclasses.replace(s, source='trunks', absent=frozenset({'foot'})) for s in legs()]
  headless = [
    dataclasses.replace(s, looks={'heart': Person(n).look('heart')}, source='hearts')
    for n, s in enumerate(legs())
  ]
  groups = learn.regions([training(12), legs(), headless, trunks])
  assert [{scan.source for scan in group} for group in groups] == [
    {''}, {'legs', 'hearts'}, {'trunks'}
  ]  # fmt: skip
  record = learn.learn(groups[1], CLASSES, (4, 4, 3))
  assert (record.absent, record.sources, record.cases) == (('head',), ('legs', 'hearts'), 8)


@pytest.mark.parametrize('order', list(itertools.permutations(range(3))))
def test_a_source_that_contradicts_none_does_not_join_two_that_do(order):
  silent = [
    dataclasses.replace(s, looks={'heart': Person(n).look('heart')}, source='hearts',
                        absent=frozenset())
    for n, s in enumerate(legs())
  ]  # fmt: skip
  sources = [legs(), silent, training(4)]  # of these, the last has the heads that the first cannot
  groups = learn.regions(sources[n] for n in order)
  assert len(groups) == 2
  assert not any({'legs', ''} <= {scan.source for scan in group} for group in groups)


def test_each_scan_is_judged_by_its_region():
  people = [dataclasses.replace(scan, source='people') for scan in training()]
  records = [learn.learn(scans, CLASSES, (4, 4, 3)) for scans in (people, legs())]
  walker = Person(1000, scan=3.0)
  looks = {'head': walker.look('head', mean_hu=900.0), 'foot': walker.look('foot')}
  assert choose(looks, walker, records) is records[1]
  judgement = judge(looks, walker, records[1], ['head'])
  head = judgement.verdicts['head']
  assert (head.plausible, head.absent, head.reasons) == (False, True, (ELSEWHERE,))
  assert judgement.verdicts['foot'].plausible is None  # four labels are no range
  assert not judgement.foreign
  # A person whose head, heart and foot are in their places is one, however much fat there is.
  whole = Person(1000, scan=3.0)
  assert choose(whole.looks(), whole, records) is records[0]
  assert choose({}, Person(1000), records) is records[0]
  giant = Person(1000, scan=12.0)
  assert judge({}, giant, choose({}, giant, records)).foreign


def test_what_only_another_region_shows_must_look_as_it_does_there():
  people, walkers = (learn.learn(scans, CLASSES, (4, 4, 3)) for scans in (training(), legs()))
  walker = Person(1000, scan=3.0)
  judged = lambda **changes: (
    judge({'heart': walker.look('heart', **changes)}, walker, walkers, ['foot'], [people]).verdicts
  )
  assert judged()['heart'].plausible is None  # it may be there: nobody knows
  heart = judged(volume_ml=3.0)['heart']
  assert (heart.plausible, heart.absent, heart.reasons[0]) == (False, True, UNSEEN)
  assert 'ml' in heart.reasons[1]
  assert judged(volume_ml=3.0, cut=True)['heart'].plausible is None  # the rest may lie beyond
  odd = Person(1000, scan=30.0)
  cut = judge({'heart': odd.look('heart', cut=True)}, odd, walkers, (), [people])
  assert cut.foreign and cut.verdicts['heart'].absent  # in a scan of nobody knows what
  giants = dataclasses.replace(
    people,
    classes={
      'heart': learn.learn(training(heart={'volume_ml': 3.0}), CLASSES, (4, 4, 3)).classes['heart']
    },
  )
  small = {'heart': walker.look('heart', volume_ml=3.0)}
  for others in ([people, giants], [giants, people]):  # like one of them
    assert judge(small, walker, walkers, (), others).verdicts['heart'].plausible is None
  # A few scans of this region showed one: what it may look like there is not known.
  few = dataclasses.replace(walkers, shown=('heart',))
  assert judge(small, walker, few, (), [people]).verdicts['heart'].plausible is None
  assert judge({}, walker, walkers, ['heart'], [people]).verdicts['heart'].absent  # a speck


def test_a_speck_that_cannot_be_there_is_absent():
  record = learn.learn(legs(), CLASSES, (4, 4, 3))
  verdict = judge({}, Person(1000, scan=3.0), record, ['head']).verdicts['head']
  assert (verdict.plausible, verdict.cut, verdict.absent) == (False, None, True)
