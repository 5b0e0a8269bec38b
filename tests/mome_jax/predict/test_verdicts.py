"""What a model was not trained on is refused before any work, unless it is forced."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from threshold import Threshold, save_scan

from mome_jax import predict
from mome_jax.errors import UserError
from mome_jax.inference.packed_mask import PackedMask
from mome_jax.predict import prompted_model, verdicts
from mome_jax.predict.request import Options, Request, make_targets

LESIONS = (
  'liver', 'liver tumor', 'right kidney', 'left kidney', 'kidney tumor', 'duodenum', 'mandible',
  'spinal cord', 'right parotid', 'left parotid', 'right adrenal gland', 'left adrenal gland',
)  # fmt: skip


def judge(prompts, *, classes=Threshold.config.classes, experimental=(), **keywords):
  request = Request([], prompts, **keywords)
  targets = make_targets(prompts, Threshold.template, as_written=request.as_written)
  predictor = Threshold()
  predictor.config = ConfigDict({'classes': classes, 'experimental': experimental})
  return verdicts.judge(targets, predictor, request)


def test_trained_classes_are_known_and_load_nothing(monkeypatch):
  monkeypatch.setattr(verdicts.checkpoint, 'load_text_encoder', None)
  verdicts._judges.cache_clear()
  targets, notes = judge(['Liver', 'hepar', 'spleens'])
  assert [(t.name, t.familiarity, t.verdict) for t in targets] == [
    ('liver', 1.0, 'known'), ('spleen', 1.0, 'known')
  ]  # fmt: skip
  assert notes == []


def test_experimental_classes_are_asked_for_by_name_only(tmp_path, monkeypatch):
  experimental = Threshold.config.copy_and_resolve_references()
  experimental.experimental = ('spleen',)
  monkeypatch.setattr(Threshold, 'config', experimental)
  scan = save_scan(tmp_path / 'scan.nii.gz')
  asked = prompted_model.ask(Threshold(), Request([scan]))
  assert [target.name for target in asked.targets] == ['liver'] and not asked.notes
  assert asked.segmenter.classes == ('liver', 'spleen')  # it still competes
  asked = prompted_model.ask(Threshold(), Request([scan], ['spleen']))
  assert [target.name for target in asked.targets] == ['spleen']
  [note] = asked.notes
  assert note.startswith('CAUTION: spleen: experimental')


@pytest.mark.parametrize(
  ('prompt', 'hint'),
  [
    ('pineapple pizza', ''),
    ('mandible', ''),  # a class of the template
    ('jaw bone', ''),  # a synonym of it
    ('肝臓', ''),
    ('liver segment 4', ' (nearest: liver)'),
  ],
)
def test_what_is_unfamiliar_is_refused_in_one_line(prompt, hint):
  with pytest.raises(verdicts.UnfamiliarError) as error:
    judge(['liver', prompt])
  message = str(error.value)
  assert isinstance(error.value, UserError)
  assert message.startswith(f'"{prompt}"{hint}: the model was not trained on this')
  assert message.endswith(
    '; it knows liver, spleen; ask for those, or pass --force for masks that cannot be trusted'
  )
  assert '\n' not in message


def test_all_that_is_refused_is_named():
  with pytest.raises(verdicts.UnfamiliarError, match='"pizza", "spinal cord": the model'):
    judge(['pizza', 'liver', 'spinal cord'])
  with pytest.raises(verdicts.UnfamiliarError, match='"dish 9" and 3 more: the model'):
    judge([f'dish {n}' for n in range(13)])


@pytest.mark.parametrize(
  ('experimental', 'told'),
  [
    (('spleen',), r'liver \(experimental: spleen\);'),
    (('liver', 'spleen'), r'liver, spleen \(experimental\);'),
  ],
)
def test_a_refusal_says_what_is_experimental(experimental, told):
  with pytest.raises(verdicts.UnfamiliarError, match=f'; it knows {told}'):
    judge(['pizza'], experimental=experimental)


def test_objections_and_what_was_not_trained_are_told_together():
  with pytest.raises(verdicts.UnfamiliarError, match='"no liver" says .*; "pizza": the model was'):
    judge(['no liver', 'pizza'])


@pytest.mark.parametrize('prompt', ['left pancreas', 'rigth kidney'])
def test_no_class_that_would_be_refused_is_recommended(prompt):
  with pytest.raises(verdicts.UnfamiliarError, match='the model was not trained on this; it knows'):
    judge([prompt])


def test_by_force_it_is_asked_and_marked():
  targets, notes = judge(['spleen', 'pizza', 'mandible'], force=True)
  assert [(t.name, t.verdict) for t in targets] == [
    ('spleen', 'known'), ('pizza', 'unfamiliar'), ('mandible', 'unfamiliar')
  ]  # fmt: skip
  assert 0 < targets[1].familiarity < 0.3
  assert targets[2].familiarity == 0  # it is known to be another class
  assert [note.partition('"')[2].partition('"')[0] for note in notes] == ['pizza', 'mandible']
  assert all(note.startswith('CAUTION') and 'cannot be trusted' in note for note in notes)


def test_as_written_the_text_alone_decides():
  targets, notes = judge(['liver', 'hepatic tissue'], as_written=True)
  assert [(t.taken_as, t.verdict) for t in targets] == [('free', 'known')] * 2
  assert all(0.8 < t.familiarity <= 1 for t in targets)
  assert notes == []
  with pytest.raises(verdicts.UnfamiliarError, match='"left kidney"'):
    judge(['left kidney'], as_written=True)


def test_what_is_near_is_asked_with_a_note(monkeypatch):
  calibration = verdicts._judges(('liver', 'spleen'), Threshold.template)._calibration
  # Between the two thresholds, wherever they are.
  middle = (calibration.near + calibration.known) / 2
  judgement = verdicts.Judgement(middle, calibration.verdict(middle), 'liver')
  monkeypatch.setattr(verdicts, '_judgements', lambda *_: {'fat of the liver': judgement})
  [target], [note] = judge(['fat of the liver'])
  assert target.verdict == 'near'
  assert note == (
    'CAUTION: "fat of the liver" is near to what the model was trained on (liver) and may mean '
    'something else; check its mask'
  )


@pytest.mark.parametrize(
  ('prompt', 'nearest'),
  [
    ('stem cell region of left parotid', 'left parotid'),
    ('stem cell region of right parotid', 'right parotid'),
    ('parotid lymph node', 'parotid'),
  ],
)
def test_what_free_text_is_like_has_the_side_that_it_names(prompt, nearest):
  [target], [note] = judge([prompt], classes=LESIONS)
  assert target.nearest == nearest and f'trained on ({nearest})' in note
  [target], _ = judge([prompt], classes=('mandible', 'right parotid'), force=True)
  assert target.nearest in ('right parotid', '')


def test_a_refusal_comes_before_the_scans(tmp_path, monkeypatch, capsys):
  scan = save_scan(tmp_path / 'a.nii.gz')
  monkeypatch.setattr(prompted_model, 'open_model', lambda path, **_: Threshold())
  words = ['--checkpoint', 'x', '--input', str(scan), '--output', str(tmp_path / 'out')]
  assert predict.main([*words, '--prompts', 'liver, pineapple pizza']) == 1
  error = capsys.readouterr().err
  assert error.startswith('error: "pineapple pizza": the model') and error.count('\n') == 1
  assert list((tmp_path / 'out').iterdir()) == []
  assert predict.main([*words, '--prompts', 'liver, pineapple pizza', '--force']) == 0
  assert 'note: CAUTION: the model was not trained on "pineapple pizza"' in capsys.readouterr().err
  known, pizza = json.loads((tmp_path / 'out' / 'a_seg.json').read_text())['labels']
  assert (known['verdict'], known['familiarity']) == ('known', 1.0)
  assert pizza['verdict'] == 'unfamiliar' and pizza['familiarity'] < 0.3
  manifest = json.loads((tmp_path / 'out' / 'manifest.json').read_text())
  assert [row['verdict'] for row in manifest['prompts']] == ['known', 'unfamiliar']
  assert manifest['options']['force'] is True


def test_python_callers_force_too(tmp_path, run):
  scan = save_scan(tmp_path / 'a.nii.gz')
  options = Options(preview=False)
  with pytest.raises(verdicts.UnfamiliarError):
    run(scan, prompts=['pizza'], options=options)
  [result] = run(scan, prompts=['pizza'], options=options, force=True)
  assert [row['verdict'] for row in result.labels] == ['unfamiliar']


def test_words_that_say_more_than_a_name_are_refused_with_what_to_write():
  with pytest.raises(verdicts.UnfamiliarError) as error:
    judge(['liver', 'no liver', 'left'])
  assert str(error.value) == (
    '"no liver" says what to leave out; write what to segment; "left" names a side alone; write '
    '"left parotid" in one prompt, or pass --force for masks that cannot be trusted'
  )
  _, notes = judge(['no liver'], force=True)
  assert notes[0] == (
    'CAUTION: "no liver" says what to leave out; write what to segment; check its mask'
  )


@pytest.mark.parametrize('prompt', ['mass in right kidney', 'left adrenal mass', 'duodenal tumor'])
def test_a_finding_of_an_organ_whose_findings_were_not_taught_is_refused(prompt):
  with pytest.raises(verdicts.UnfamiliarError, match='names a finding .* ask for the organ'):
    judge([prompt], classes=LESIONS)


def test_findings_that_were_taught_are_asked():
  targets, notes = judge(['liver metastases', 'lesion in the liver'], classes=LESIONS)
  assert [(t.verdict, t.nearest) for t in targets] == [('known', ''), ('known', 'liver tumor')]
  assert notes == []


def test_the_side_of_free_text_for_a_lesion_is_refused():
  with pytest.raises(verdicts.UnfamiliarError, match='kidney tumor has no left and right here'):
    judge(['tumor in the left kidney'], classes=LESIONS)


@pytest.mark.parametrize(
  'prompt',
  [
    'mandibular nerve',
    'spinal cord canal',
    'parotid lymph node',
    'left ramus of mandible',
    'cord blood',
    'deep left parotid',
    'outer mandible',
    'front of the mandible',
    'rest of the mandible',
  ],
)
def test_a_part_or_neighbour_of_a_class_is_near_at_most(prompt):
  [target], [note] = judge([prompt], classes=LESIONS)
  assert target.verdict == 'near' and target.familiarity > 0.9
  assert note.startswith(f'CAUTION: "{prompt}" is near to') and note.endswith('check its mask')


def test_of_a_report_one_line_repeats_the_start_alone():
  with pytest.raises(verdicts.UnfamiliarError) as error:
    judge(['no acute findings in this liver ' * 200])
  message = str(error.value)
  assert message.startswith('"no acute findings in') and len(message) < 400
  assert '[...]" has 1200 words; write the name of one structure' in message


def test_free_text_like_a_class_that_finds_nothing_is_told():
  """As 'bone of my lower jaw' with the package's model: known, and no voxel."""
  targets, _ = judge(['hepatic tissue'], as_written=True)
  assert targets[0].nearest == 'liver'
  mask = PackedMask((2, 2, 2))
  masks = {targets[0].name: mask}
  [note] = verdicts.unanswered('a.nii.gz', targets, masks)
  assert note == ('a.nii.gz: nothing was found for "hepatic tissue"; it may be like "liver"')
  full = PackedMask((2, 2, 2))
  full.add((slice(0, 2),) * 3, np.ones((2, 2, 2), bool))
  assert verdicts.unanswered('a.nii.gz', targets, {targets[0].name: full}) == []
