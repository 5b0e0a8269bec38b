"""What fine-tuning plans, and what it refuses before it begins."""

import json
import math
import shutil
import signal
import types

import jax
import nibabel as nib
import numpy as np
import pytest
from etils import epath

from input_pipeline import bricks
from input_pipeline.prepare import prepare
from mome_jax import checkpoint, shipped
from mome_jax.checkpoint import training_cases
from mome_jax.configs import finetune
from mome_jax.evaluate import metrics, score_checkpoint, score_files
from mome_jax.finetune import command, run, verdict
from mome_jax.training import config_flag


def config_of(data_dir):
  config = finetune.get_config(config_flag.start_from(str(shipped.MODEL)))
  config.data_dir, config.data.sources = str(data_dir), ('mine',)
  return config


def folder_of(place, number):
  """A folder of small scans; pancreas everywhere, larynx in the first alone."""
  rng = np.random.default_rng(0)
  for part in ('imagesTr', 'labelsTr'):
    (place / part).mkdir(parents=True)
  for case in range(number):
    image = rng.integers(0, 80, (16, 16, 16)).astype(np.int16)
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[2:8, 2:8, 2:8] = 1
    labels[10:14, 10:14, 10:14] = 2 * (case == 0)
    for part, array, end in (('imagesTr', image, '_0000'), ('labelsTr', labels, '')):
      file = place / part / f'c{case:02}{end}.nii.gz'
      nib.save(nib.Nifti1Image(array, np.diag([4.0, 4.0, 3.0, 1.0])), file)
  return place


def declare(place, **more):
  content = {'labels': {'background': 0, 'pancreas': 1, 'larynx': 2}} | more
  (place / 'dataset.json').write_text(json.dumps(content))


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """Twelve training scans with pancreas; larynx is labelled in one."""
  place = folder_of(tmp_path_factory.mktemp('mine') / 'Own Scans', 13)
  declare(place, missing_is='unlabelled', splits={'validation': ['c12']})
  prepare('nifti_folder', place.parent / 'data', manual_dir=str(place), name='mine',
          spacing=(4, 4, 3), brick=16)  # fmt: skip
  return place.parent / 'data'


def test_plan(data_dir, tmp_path, capsys):
  config = config_of(data_dir)
  start = config.copy_and_resolve_references()
  run.plan(config, start, epath.Path(tmp_path), None)
  assert config.classes == ('larynx', 'pancreas')  # what the start knows comes first
  assert config.train.steps == 480  # 12 scans, 40 each
  assert config.validation.cases == 2 and config.evaluation.checkpoint == 'best'
  shown = capsys.readouterr().out
  assert 'new classes: pancreas' in shown
  assert '480 steps (40 a training scan, 300 to 2000: a guess' in shown
  assert 'the best of 5 checkpoints' in shown  # after 96 steps each
  assert 'not in the new model: brainstem, spinal cord, right parotid' in shown


def test_steps_as_asked(data_dir, tmp_path, capsys):
  config = config_of(data_dir)
  run.plan(config, config.copy_and_resolve_references(), epath.Path(tmp_path), 7)
  assert config.train.steps == config.train.warmup_steps == 7
  shown = capsys.readouterr().out
  assert '7 steps (as asked) at a learning rate of ' in shown
  assert 'the model is that of the last step' in shown


def test_a_class_of_held_out_scans_alone_is_told(tmp_path, capsys):
  """Of two scans one is held out: its larynx would be lost without a word."""
  place, config = folder_of(tmp_path / 'scans', 2), config_of(tmp_path)
  config.classes = ('pancreas',)
  declare(place, missing_is='unlabelled', splits={'validation': ['c00']})
  run._tell_not_learned(str(place), config)
  assert capsys.readouterr().out.startswith('NOT LEARNED: larynx: labelled in held-out scans alone')
  config.classes = ('larynx', 'pancreas')
  run._tell_not_learned(str(place), config)
  assert capsys.readouterr().out == ''


@pytest.mark.parametrize('pieces', [1, 2])
def test_organs_in_pieces_keep_them(pieces, tmp_path, capsys):
  """The rule is the start's, for its organs; of an aorta cut below its arch it loses a piece."""
  scans = folder_of(tmp_path / 'scans', 2)
  for case in ('c00', 'c01'):
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[3:5, 3:5] = 1
    labels[10:12, 10:12] = pieces - 1
    nib.save(nib.Nifti1Image(labels, np.diag([4, 4, 3, 1])), scans / f'labelsTr/{case}.nii.gz')
  (scans / 'dataset.json').write_text('{"labels": {"background": 0, "aorta": 1}}')
  prepare('nifti_folder', tmp_path / 'data', manual_dir=str(scans), name='mine',
          spacing=(4, 4, 3), brick=16)  # fmt: skip
  config = config_of(tmp_path / 'data')
  config.evaluation.postprocess = ('sides', 'largest')
  run._tidy(config)
  told = 'without the rule largest, which the start has: not every organ is one piece in 95 %'
  assert (told in capsys.readouterr().out) == (pieces == 2)
  assert config.evaluation.postprocess == (('sides',) if pieces == 2 else ('sides', 'largest'))


def test_names_of_prepared_sources():
  names = ['/a/Own Scans', 'b/Dataset001_Liver/', '../2026-CT']
  assert list(map(run._identifier, names)) == ['own_scans', 'dataset001_liver', 'scans_2026_ct']


def test_a_workdir_is_of_one_folder_and_model(tmp_path):
  place = epath.Path(tmp_path / 'run')
  run._note(place, 'a', str(shipped.MODEL))
  run._note(place, 'a', str(shipped.MODEL))  # the same command again
  with pytest.raises(run.FinetuneError, match='fine-tunes data .*a; choose another --workdir'):
    run._note(place, 'b', str(shipped.MODEL))
  file = place / 'finetune.json'
  whole = file.read_text()
  with pytest.raises(run.FinetuneError, match='if that has only moved, write') as caught:
    run._note(place, 'b', str(shipped.MODEL))
  told = str(caught.value)
  file.write_text(told[told.index('{') : told.rindex('}') + 1])  # as it says
  run._note(place, 'b', str(shipped.MODEL))
  file.write_text(whole)
  for damaged in (b'', whole.encode()[:9], b'\xff', b'[]'):
    file.write_bytes(damaged)
    with pytest.raises(run.FinetuneError, match='finetune.json: cannot be read') as caught:
      run._note(place, 'a', str(shipped.MODEL))
    told = str(caught.value)
    file.write_text(told[told.index('{') : told.rindex('}') + 1])  # as it says
    run._note(place, 'a', str(shipped.MODEL))


def test_a_workdir_knows_its_folder_and_model_wherever_they_are_seen(tmp_path, monkeypatch):
  """Another environment, a link to the scans, and a model of the Hub without a connection."""
  place, scans = epath.Path(tmp_path / 'run'), tmp_path / 'scans'
  scans.mkdir()
  (tmp_path / 'link').symlink_to(scans)
  run._note(place, str(tmp_path / 'link'), str(shipped.MODEL))
  assert json.loads((place / 'finetune.json').read_text())['from'] == 'shipped'
  moved = tmp_path / 'venv' / '/'.join(shipped.MODEL.parts[-3:])
  for before in (str(shipped.MODEL), str(moved)):  # as earlier versions noted it
    (place / 'finetune.json').write_text(
      json.dumps({'data': str(tmp_path / 'link'), 'from': before})
    )
    monkeypatch.setattr(shipped, 'MODEL', moved)
    run._note(place, str(scans), str(moved))
  remote = epath.Path(tmp_path / 'remote')
  for _ in range(2):
    run._note(remote, str(scans), 'hf:org/name')
  with pytest.raises(run.FinetuneError, match='fine-tunes from hf:org/name; choose another'):
    run._note(remote, str(scans), 'hf:org/other')
  fetched = tmp_path / 'hub/models--org--name/snapshots/0123abc'  # as earlier versions noted it
  (remote / 'finetune.json').write_text(json.dumps({'data': str(scans), 'from': str(fetched)}))
  run._note(remote, str(scans), 'hf:org/name')


def test_absent_labels_are_asked_about_before_anything_is_written(tmp_path, capsys):
  place = folder_of(tmp_path / 'scans', 2)
  declare(place)
  assert command.main([f'--data={place}', f'--workdir={tmp_path / "run"}']) == 1
  assert '"missing_is": "unlabelled"' in capsys.readouterr().err
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(('words', 'message'), [
  (['--data=nowhere'], 'nowhere: no such folder'),
  (['--data=nowhere', '--from=neither'], 'neither: no model there'),
])  # fmt: skip
def test_mistakes(words, message, tmp_path, capsys):
  assert command.main([*words, f'--workdir={tmp_path / "run"}']) == 1
  assert message in capsys.readouterr().err
  assert not (tmp_path / 'run').exists()


def test_the_start_is_scored_with_all_that_it_knows(data_dir, tmp_path):
  """Banks attend to the classes of training, and all of them compete in a prediction."""
  config = config_of(data_dir)
  start = checkpoint.load_config(shipped.MODEL)
  run.plan(config, start, epath.Path(tmp_path), 100)
  config.evaluation.overlap, config.evaluation.postprocess = 0.125, ()  # as `_tidy` leaves it
  scored = run.evaluation_of_start(config, epath.Path(shipped.MODEL))
  assert scored.classes == start.classes != config.classes
  assert (scored.data_dir, scored.data.sources) == (str(data_dir), ('mine',))
  assert (scored.evaluation.overlap, scored.evaluation.checkpoint) == (0.125, 'last')
  assert tuple(scored.evaluation.postprocess) == ('largest',)  # as WORKDIR/model may have it
  assert config.evaluation.checkpoint == 'best'


def test_the_start_is_compared_and_what_training_began_with_stays(data_dir, tmp_path, monkeypatch):
  config = config_of(data_dir)
  config.classes = ('larynx',)
  checkpoint.save_description(tmp_path, config)
  (tmp_path / 'start').mkdir()
  (tmp_path / 'start' / '_METADATA').write_text('the first parameters')
  scored = []
  monkeypatch.setattr(run.evaluate, 'evaluate', lambda _, folder, **__: scored.append(folder.name))
  monkeypatch.setattr(run.score_files, 'read', lambda _: [])
  run._export_whole(str(shipped.MODEL), epath.Path(tmp_path) / 'start_model')
  run._compare(config, epath.Path(tmp_path))
  assert scored == [tmp_path.name, 'start_model']
  assert checkpoint.load_config(tmp_path / 'start_model').classes
  assert (tmp_path / 'start' / '_METADATA').read_text() == 'the first parameters'


@pytest.fixture
def compared(tmp_path, monkeypatch):
  """A run fine-tuned on c00, which is held out as c02 too; it scores without a network."""
  scans = folder_of(tmp_path / 'scans', 4)
  twin = (scans / 'imagesTr/c00_0000.nii.gz').read_bytes()
  (scans / 'imagesTr/c02_0000.nii.gz').write_bytes(twin)
  declare(scans, missing_is='unlabelled', splits={'validation': ['c02', 'c03']})
  prepare('nifti_folder', tmp_path / 'data', manual_dir=str(scans), name='mine',
          spacing=(4, 4, 3), brick=16)  # fmt: skip
  config = config_of(tmp_path / 'data')
  config.evaluation.pictures = 0
  place = epath.Path(tmp_path / 'run')
  checkpoint.save_description(place, config)
  store = bricks.open_bricks(str(tmp_path / 'data'), 'mine')
  training_cases.note(place, [store], resumed=False, init=str(shipped.MODEL))
  run._export_whole(str(shipped.MODEL), place / 'start_model')

  def segment(run, part, pictures):
    empty = dict.fromkeys(metrics.METRICS, 0.5) | dict.fromkeys(('lesions', 'found', 'predicted'))
    rows = [
      {'source': case.source, 'case': case.name, 'split': case.split, 'class': 'larynx'} | empty
      for case in part.read()
    ]
    return rows, []

  of = types.SimpleNamespace
  opened = of(members=(), step=1, segmenter=lambda *_: of(settings=of(rules=[])))
  monkeypatch.setattr(score_checkpoint, 'open_model', lambda *_, **__: opened)
  monkeypatch.setattr(score_checkpoint.router_maps, 'make_explainer', lambda *_: None)
  monkeypatch.setattr(score_checkpoint._Evaluation, '_segment', segment)
  return config, place


def test_a_held_out_twin_of_a_training_scan_is_compared_on_neither_side(compared):
  config, place = compared
  result = run._compare(config, place)
  assert result.why_not == '' and result.mean.n == 1
  for folder in (place, place / 'start_model'):
    assert {row['case'] for row in score_files.read(folder)} == {'c03'}


def test_a_comparison_that_fails_costs_no_model(compared, monkeypatch):
  config, place = compared

  def fail(*_):
    raise score_files.ResultsError('start: lacks 1 cases of fine-tuned')

  assert run._compare(config, place).comparison and (place / 'comparison.md').is_file()
  monkeypatch.setattr(verdict, 'judge', fail)
  result = run._compare(config, place)
  assert not (place / 'comparison.md').exists()
  assert result.failed and result.lines() == [
    'NOT COMPARED with the start: start: lacks 1 cases of fine-tuned; training is whole, and the '
    'same command compares again'
  ]
  assert not result.keeps_start


def test_that_there_is_nothing_to_compare_is_no_failure(compared):
  config, place = compared
  config.evaluation.split = 'test'
  result = run._compare(config, place)
  assert 'no scan to score' in result.why_not and not result.failed


@pytest.fixture
def commanded(data_dir, tmp_path, monkeypatch):
  """main(start) -> exit code, in a workdir whose scans are prepared; nothing is trained."""
  place = epath.Path(tmp_path / 'run')
  scans = data_dir.parent / 'Own Scans'

  def trained(config, workdir):
    checkpoint.save_description(workdir, config)
    (workdir / 'checkpoints/300').mkdir(parents=True, exist_ok=True)
    return config

  monkeypatch.setattr(run.loop, 'train', trained)
  monkeypatch.setattr(run, '_compare', lambda config, _: verdict.Verdict(None, (), 'as it is'))
  monkeypatch.setattr(run, '_export', lambda place, _: None)
  return lambda start, *more, scans=scans: command.main(
    [f'--data={scans}', f'--from={start}', f'--workdir={place}', *more]
  )


def test_a_run_goes_on_with_the_steps_that_it_was_asked_for(commanded, tmp_path, capsys):
  """Forgotten the second time, fewer planned ones would pass for the end of the run."""
  for words, steps in ((['--steps=900'], 900), ([], 900), (['--steps=1200'], 1200), ([], 1200)):
    assert commanded('shipped', *words) == 0
    assert checkpoint.load_config(tmp_path / 'run').train.steps == steps
    assert f'{steps} steps (as asked)' in capsys.readouterr().out


def test_a_run_goes_on_by_a_link_of_another_name(commanded, data_dir, tmp_path, monkeypatch):
  assert commanded(shipped.MODEL) == 0
  (tmp_path / 'linked').symlink_to(data_dir.parent / 'Own Scans')
  sources, reports = [], []
  train, prepare = run.loop.train, run.prepare.prepare
  monkeypatch.setattr(
    run.loop, 'train', lambda c, place: sources.append(c.data.sources) or train(c, place)
  )
  monkeypatch.setattr(
    run.prepare,
    'prepare',
    lambda *words, **more: reports.append(prepare(*words, **more)) or reports[-1],
  )
  assert commanded('shipped', scans=tmp_path / 'linked') == 0
  assert sources == [('own_scans',)]
  assert reports[0]['changes'] == {'added': 0, 'replaced': 0, 'removed': 0, 'kept': 13}


def test_a_run_goes_on_with_scans_that_have_moved(
  commanded, data_dir, tmp_path, monkeypatch, capsys
):
  """Into a folder of another name, by what the refusal says: the run is of the source it began."""
  assert commanded('shipped') == 0
  moved = tmp_path / 'Moved'
  shutil.copytree(data_dir.parent / 'Own Scans', moved)
  assert commanded('shipped', scans=moved) == 1
  told = capsys.readouterr().err
  (tmp_path / 'run/finetune.json').write_text(told[told.index('{') : told.rindex('}') + 1])
  sources, train = [], run.loop.train
  monkeypatch.setattr(
    run.loop, 'train', lambda c, place: sources.append(c.data.sources) or train(c, place)
  )
  assert commanded('shipped', scans=moved) == 0
  assert sources == [('own_scans',)]


def test_a_run_that_has_begun_goes_on_without_its_start(commanded, tmp_path, capsys):
  start = tmp_path / 'start'
  run._export_whole(str(shipped.MODEL), epath.Path(start))
  assert commanded(start) == 0
  before = checkpoint.load_config(tmp_path / 'run')
  shutil.rmtree(start)
  assert commanded(start) == 0, capsys.readouterr().err
  after = checkpoint.load_config(tmp_path / 'run')
  assert after.to_json_best_effort() == before.to_json_best_effort()
  assert commanded(tmp_path / 'other') == 1
  assert f'fine-tunes from {start}; choose another --workdir' in capsys.readouterr().err


def test_what_is_trained_from_is_what_is_compared_with(commanded, tmp_path, monkeypatch):
  """A start that is trained on meanwhile, or removed, is read once: where it is copied."""
  start, began = tmp_path / 'start', []
  run._export_whole(str(shipped.MODEL), epath.Path(start))
  whole, train = run._export_whole, run.loop.train

  def copied(model, folder):
    whole(model, folder)
    shutil.rmtree(start)

  def trained(config, workdir):
    began.append(config.init.checkpoint)
    assert checkpoint.load_config(config.init.checkpoint).classes
    return train(config, workdir)

  monkeypatch.setattr(run, '_export_whole', copied)
  monkeypatch.setattr(run.loop, 'train', trained)
  assert commanded(start) == 0
  assert commanded(start) == 0
  assert began == [str(tmp_path / 'run/start_model')] * 2


def test_a_run_of_an_earlier_version_names_what_it_began_with(commanded, tmp_path):
  assert commanded(shipped.MODEL) == 0
  config = checkpoint.load_config(tmp_path / 'run')
  config.init.checkpoint = str(shipped.MODEL)
  checkpoint.save_description(epath.Path(tmp_path / 'run'), config)
  assert commanded(shipped.MODEL) == 0
  assert checkpoint.load_config(tmp_path / 'run').init.checkpoint == str(shipped.MODEL)


def test_a_scan_that_is_left_out_is_told_at_the_end(commanded, monkeypatch, capsys):
  skipped = {'skipped': [('c03', 'c03_0000.nii.gz: cut off')]}
  whole = run.prepare.prepare
  monkeypatch.setattr(run.prepare, 'prepare', lambda *args, **more: whole(*args, **more) | skipped)
  assert commanded(shipped.MODEL) == 1
  told = capsys.readouterr()
  assert 'LEFT OUT: c03: c03_0000.nii.gz: cut off' in told.err and 'Model: ' in told.out
  assert told.err.endswith('left out: c03, as told above\n')


@pytest.mark.parametrize('came', ['scan', 'nothing'])
def test_scans_that_came_since_are_told_and_not_what_they_plan(
  came, commanded, data_dir, tmp_path, monkeypatch, capsys
):
  """From ten scans on some choose the checkpoint: no value of a config is what the user changed."""
  assert commanded(shipped.MODEL) == 0
  digest = bricks.open_bricks(str(tmp_path / 'run/data'), 'own_scans').digest()
  digest = digest if came == 'nothing' else 'of nine scans'
  monkeypatch.setattr(checkpoint, 'read_position', lambda _: {'data': {'own_scans': digest}})
  planned = []
  monkeypatch.setattr(run, 'plan', lambda *_: planned.append(1))
  assert commanded(shipped.MODEL) == (came == 'scan') and len(planned) == (came == 'nothing')
  told = f'Own Scans: its training scans or their labels are not those that the run in {tmp_path}'
  assert (told in capsys.readouterr().err) == (came == 'scan')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_what_stops_the_preparation(number, commanded, monkeypatch, capsys):
  """The system's end of a job is told apart: launchers start the same command again on 75."""
  monkeypatch.setattr(run.prepare, 'prepare', lambda *_, **__: signal.raise_signal(number))
  told = {signal.SIGTERM: 'stopped: asked to end; the same command resumes\n'}
  assert commanded(shipped.MODEL) == (75 if number in told else 130)
  assert capsys.readouterr().err.endswith(told.get(number, 'error: interrupted\n'))


def test_what_stops_it_before_it_has_begun(monkeypatch):
  """As while modules are imported."""
  monkeypatch.setattr(run, 'run', lambda *_: signal.raise_signal(signal.SIGTERM))
  assert command.main(['--data=nowhere']) == 75


@pytest.mark.parametrize('failed', [True, False])
def test_a_comparison_that_fails_is_an_error(failed, commanded, monkeypatch, capsys):
  result = verdict.Verdict(None, (), 'disk full', failed)
  monkeypatch.setattr(run, '_compare', lambda *_: result)
  assert commanded(shipped.MODEL) == failed
  assert 'NOT COMPARED with the start: disk full' in capsys.readouterr().out


def test_what_got_worse_is_not_exported(tmp_path):
  """WORKDIR/model is the start, which still knows its seven classes; so too when it is there."""
  place = epath.Path(tmp_path)
  lost = [
    {'source': 'mine', 'case': 'a', 'split': 'validation', 'class': 'larynx'}
    | dict.fromkeys(metrics.METRICS, math.nan)
    | {'dice': dice}
    for dice in (0.8, 0.7)
  ]
  result = verdict.judge(lost[:1], lost[1:], ())
  run._export_whole(str(shipped.MODEL), place / 'start_model')
  for _ in range(2):
    run._export(place, result)
  model = checkpoint.load_config(place / 'model')
  assert model.classes == checkpoint.load_config(shipped.MODEL).classes
  assert sorted(path.name for path in place.iterdir()) == ['model', 'start_model']


@pytest.mark.parametrize(
  ('before', 'accumulate', 'devices', 'after'), [(1, 1, 1, 1), (1, 1, 2, 2), (8, 2, 3, 12)]
)
def test_each_device_has_as_many_patches(
  before, accumulate, devices, after, data_dir, tmp_path, monkeypatch
):
  monkeypatch.setattr(jax, 'device_count', lambda: devices)
  config = config_of(data_dir)
  config.train.batch_size, config.train.accumulate = before, accumulate
  run._share_batch(config, epath.Path(tmp_path))
  assert config.train.batch_size == after


def test_a_run_that_goes_on_keeps_its_batch(data_dir, tmp_path, monkeypatch):
  """It may go on with fewer devices; another batch would be refused as another run."""
  monkeypatch.setattr(checkpoint, 'goes_on', lambda place: True)
  before = config_of(data_dir)
  before.train.batch_size = 4
  monkeypatch.setattr(checkpoint, 'load_config', lambda place: before)
  config = config_of(data_dir)
  run._share_batch(config, epath.Path(tmp_path))
  assert config.train.batch_size == 4
