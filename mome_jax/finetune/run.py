"""What `finetune` does, step by step; each is passed over where an earlier start has done it."""

import json
import math
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Sequence

import jax
from etils import epath
from ml_collections import ConfigDict

from input_pipeline import bricks, prepare, progress, sources
from input_pipeline.bricks.command import edge_for
from input_pipeline.cli import spoken
from input_pipeline.files import text_files
from input_pipeline.prepare import check
from mome_jax import checkpoint, evaluate, shipped
from mome_jax.checkpoint import files, hub
from mome_jax.configs import finetune
from mome_jax.errors import UserError, few, one_line, writing
from mome_jax.evaluate import compare, score_files
from mome_jax.export import export
from mome_jax.finetune import verdict
from mome_jax.plan import cohort, rules
from mome_jax.runtime import process
from mome_jax.training import (
  config_check,
  config_flag,
  loop,
  multihost,
  validation_scans,
)

_NOTE = 'finetune.json'  # in a workdir: what it is the fine-tuning of
_START = 'start_model'  # a copy of what it starts from; training keeps its parameters in `start`
_STEPS_A_SCAN, _FEWEST, _MOST = 40, 300, 2000
_VALIDATIONS, _STEPS_APART = 5, 50
_ENOUGH = 10  # training scans, from which on a fifth of them chooses the best checkpoint
_SET_ASIDE = 8  # scans at most
_LOOKED_AT = 20  # training scans at most, for organs in pieces


class FinetuneError(UserError):
  """The folder, model or workdir do not fit each other; the message names the fix."""


def run(data: str, start: str, workdir: str | None, steps: int | None) -> int:
  """Checks, prepares, trains, compares and exports; returns the exit code.

  Training reads a copy of the start, which is what the new model is compared with; a run that has
  begun to train goes on with it, whatever became of the start.

  Args:
    data: folder as of the source nifti_folder.
    start: 'shipped', a model folder or a training workdir.
    workdir: of everything that is written; None: runs/ and the name of `data`.
    steps: of training; None: planned, or those that a run which goes on was begun with.

  Raises:
    UserError: of whatever the user can mend.
  """
  try:
    with multihost.device_errors(), multihost.outside_the_steps():
      return _run(data, start, workdir, steps)
  except multihost.Preempted as notice:
    print(f'stopped: {notice}', file=sys.stderr)
    return notice.code


def _run(data: str, start: str, workdir: str | None, steps: int | None) -> int:
  """As `run`; Preempted where the system asks it to end."""
  process.prepare()
  place = checkpoint.own_folder(workdir or f'runs/{_identifier(data)}')
  resumed = checkpoint.goes_on(place)
  # Of a run that has begun, whatever its folder is called by now.
  name = checkpoint.load_config(place).data.sources[0] if resumed else _name(data, place / 'data')
  known = str(place / _START) if _has_start(place) else start
  config = finetune.get_config(config_flag.start_from(known))
  config.init.checkpoint = checkpoint.load_config(place).init.checkpoint if resumed else start
  config.data_dir, config.data.sources = str(place / 'data'), (name,)
  _share_batch(config, place)
  if bricks.read_settings(config.data_dir, name) is None:
    _check(data, name, config)  # before anything is written
  _note(place, data, start)
  skipped = _prepare(data, name, config)
  if resumed:
    _check_scans(data, place, config)
    steps = steps or checkpoint.load_config(place).train.steps
  plan(config, checkpoint.load_config(known), place, steps)
  _tell_not_learned(data, config)
  _tidy(config)
  config_check.check(config, model=str(place) if resumed else '')
  if not _has_start(place):
    _export_whole(start, place / _START)
  if not resumed:
    config.init.checkpoint = str(place / _START)
  config = loop.train(config, place)
  result = _compare(config, place)
  _export(place, result)
  print('\n'.join(['', *result.lines()]), flush=True)
  print('\n'.join(['', f'Model: {place / "model"}. Next:', *_next(place)]))
  if skipped:
    print(f'left out: {few(case for case, _ in skipped)}, as told above', file=sys.stderr)
  return 1 if skipped or result.failed else 0


def _has_start(place: epath.Path) -> bool:
  """Whether a run has begun to train, and keeps what it started from."""
  return checkpoint.goes_on(place) and (place / _START / 'params').exists()


def _share_batch(config: ConfigDict, place: epath.Path) -> None:
  """Gives each device as many patches of a step; a run that goes on keeps its batch."""
  if checkpoint.goes_on(place):
    config.train.batch_size = checkpoint.load_config(place).train.batch_size
    return
  parts = jax.device_count() * config.train.accumulate
  config.train.batch_size = math.ceil(config.train.batch_size / parts) * parts


def _name(data: str, data_dir: epath.Path) -> str:
  """Name of the prepared source: as it is there, by whatever link to the folder, or a new one."""
  name, prepared = _identifier(data), bricks.prepared_sources(data_dir)
  for other in prepared if name not in prepared else ():
    folder = (bricks.read_settings(data_dir, other) or {}).get('manual_dir')
    if folder and os.path.realpath(folder) == os.path.realpath(data):
      return other
  return name


def _identifier(data: str) -> str:
  """Name of the prepared source: that of the folder, in small letters, digits and _."""
  stem = re.sub('[^a-z0-9]+', '_', pathlib.Path(os.path.abspath(data)).name.lower()).strip('_')
  return stem if re.match('[a-z]', stem) else f'scans_{stem}'.rstrip('_')


def _note(place: epath.Path, data: str, model: str) -> None:
  """Writes what the workdir is for; FinetuneError if it is for something else."""
  content = {'data': os.path.realpath(data), 'from': _origin(model)}
  file = place / _NOTE
  if file.is_file():
    before = _noted(file, content)
    data, origin = str(before.get('data')), str(before.get('from'))
    again = {'data': os.path.realpath(data), 'from': _origin(origin)}  # as it would be noted now
    differ = [f'{key} {before.get(key)}' for key in content if again[key] != content[key]]
    if differ:
      raise FinetuneError(
        f'{place}: fine-tunes {", ".join(differ)}; choose another --workdir, or, if that has only '
        f'moved, write {json.dumps(content)} into {file}'
      )
    return
  if checkpoint.goes_on(place):
    raise FinetuneError(f'{place}: holds another run; choose another --workdir')
  with writing(place):
    place.mkdir(parents=True, exist_ok=True)
    text_files.replace(file, json.dumps(content, indent=2) + '\n')


def _origin(model: str) -> str:
  """What a start is known by, whether it is there or not: its folder, 'shipped' or `hf:ORG/NAME`.

  The package's lies elsewhere in another environment, and one of the Hub with another revision.
  """
  if files.is_name(model):
    return model
  place = files.absolute(model)  # which may be gone by now
  place = place.parent.parent if files.is_checkpoint(place) else place
  # Earlier versions noted the place of what they had fetched.
  return shipped.NAME if shipped.is_model(place) else hub.name_of(place) or str(place)


def _noted(file: epath.Path, content: dict[str, str]) -> dict[str, str]:
  """What a workdir is for; FinetuneError, with the content as it should be, if that is damaged."""
  try:
    before = json.loads(file.read_text(encoding='utf-8'))
    if isinstance(before, dict):
      return before
    reason = f'{type(before).__name__} in place of an object'
  except (OSError, ValueError) as error:  # JSONDecodeError and UnicodeDecodeError among them
    reason = one_line(error)
  raise FinetuneError(
    f'{file}: cannot be read ({reason}); if this workdir is of these scans and this start, write '
    f'{json.dumps(content)} into it, or choose another --workdir'
  )


def _check(data: str, name: str, config: ConfigDict) -> None:
  """Prints what is wrong with the folder; an error where nothing can be done with it."""
  cases, _ = sources.get_source('nifti_folder').listed(data)
  prepare.check_disk(cases, config.data_dir, name, config.data.spacing, 'the prepared scans')
  for case, findings in check.check_source('nifti_folder', data):
    for finding in findings if case else ():  # what is said of the whole, `prepare` says
      progress.line(f'{finding.kind}: {case}: {finding.message}', sys.stderr)


def _prepare(data: str, name: str, config: ConfigDict) -> Sequence[tuple[str, str]]:
  """Prepares the folder at the spacing of the model; (case, reason) of what was left out."""
  mm = tuple(config.data.spacing)
  report = prepare.prepare(
    'nifti_folder',
    config.data_dir,
    manual_dir=os.path.realpath(data),  # by another link they would be converted again
    name=name,
    spacing=mm,
    brick=edge_for(config.data.patch),
  )
  for case, reason in report['skipped']:
    print(f'LEFT OUT: {case}: {reason}', file=sys.stderr)
  at = ' x '.join(f'{edge:g}' for edge in mm)
  print(f'prepared at {at} mm, as the start: {prepare.counted(report)} scans', flush=True)
  return report['skipped']


def _check_scans(data: str, place: epath.Path, config: ConfigDict) -> None:
  """FinetuneError where a run has begun with other training scans than are prepared now.

  Asked before they are planned for: a plan for others has other values than the run.
  """
  try:
    position = checkpoint.read_position(place)
  except checkpoint.CheckpointError:
    return  # training goes on from the checkpoint before it, or says why it cannot
  (name,) = config.data.sources
  digests = {name: bricks.open_bricks(config.data_dir, name).digest()}
  try:
    checkpoint.check_same_data(place, position, digests)
  except checkpoint.CheckpointError as error:
    raise FinetuneError(
      f'{data}: its training scans or their labels are not those that the run in {place} began '
      'with; bring those back and give the same command again, or fine-tune on the scans of now in '
      f'another --workdir (with --from={place} from the model of this run)'
    ) from error


def plan(config: ConfigDict, start: ConfigDict, place: epath.Path, steps: int | None) -> None:
  """Sets classes, steps and validation, in place, and prints why.

  Args:
    config: with prepared sources.
    start: of the model to start from.
    place: workdir of the run.
    steps: as the user asked, or None.

  Raises:
    FinetuneError: if no training scan labels anything.
  """
  template = bricks.read_template(config.data_dir, config.data.sources, config.new_classes)
  stores = [bricks.open_bricks(config.data_dir, name, template) for name in config.data.sources]
  cases = [case for store in stores for case in store.cases]
  labelled = {name for case in cases for name in case.labelled}
  known = [name for name in start.classes if name in labelled]
  new = [name for name in template.names() if name in labelled and name not in known]
  if not labelled:
    raise FinetuneError(f'{config.data_dir}: no training scan labels a class; add labelled scans')
  config.classes = (*known, *new)
  forgotten = [name for name in start.classes if name not in labelled]
  print(f'classes that the start knows: {", ".join(known) or "none"}')
  print(f'new classes: {", ".join(new) or "none"}')
  if forgotten:
    print(
      f'not labelled here, and so not in the new model: {", ".join(forgotten)} (without scans of '
      'them they would be forgotten; the start still segments them)'
    )
  planned = min(max(_FEWEST, _STEPS_A_SCAN * len(cases)), _MOST)
  config.train.steps = steps or planned
  config.train.warmup_steps = min(20, config.train.steps)
  every = max(_STEPS_APART, config.train.steps // _VALIDATIONS)
  config.train.checkpoint_every = config.validation.every = every
  config.validation.cases, config.evaluation.checkpoint = 0, 'last'
  if len(cases) >= _ENOUGH:
    config.validation.cases = min(_SET_ASIDE, len(cases) // 5)
    if validation_scans.split(config, stores, template, place)[1] is None:
      config.validation.cases = 0
    else:
      config.evaluation.checkpoint = 'best'
  why = 'as asked'
  if steps in (None, planned):
    why = f'{_STEPS_A_SCAN} a training scan, {_FEWEST} to {_MOST}: a guess, --steps sets them'
  validations = math.ceil(config.train.steps / every)
  chooses = config.validation.cases and validations > 1
  chosen = f'the best of {validations} checkpoints' if chooses else 'the last step'
  rate = config.train.learning_rate
  print(
    f'{config.train.steps} steps ({why}) at a learning rate of {rate:.2g}; the model is that of '
    f'{chosen}',
    flush=True,
  )


def _tell_not_learned(data: str, config: ConfigDict) -> None:
  """Prints which classes of the folder no training scan labels."""
  cases, _ = sources.get_source('nifti_folder').listed(data)
  labelled = dict.fromkeys(name for case in cases for name in case.labelled)
  if lost := [name for name in labelled if name not in config.classes]:
    print(
      f'NOT LEARNED: {", ".join(lost)}: labelled in held-out scans alone, or in scans that were '
      'left out; "splits" in dataset.json says which scans are held out',
      flush=True,
    )


def _tidy(config: ConfigDict) -> None:
  """Leaves the rule `largest` of the start out, in place, where labels have organs in pieces.

  Of an aorta that a scan cuts below its arch, or a colon, it would keep one piece.
  """
  given = config.evaluation.postprocess
  if 'largest' not in given:
    return
  names = [(name, None) for name in config.data.sources]
  try:
    choice = rules.tidy(cohort.read_cohort(names, config.data_dir, _LOOKED_AT))
  except cohort.CohortError:
    return  # there is nothing to learn either, which training says
  if 'largest' not in choice.value:
    config.evaluation.postprocess = tuple(rule for rule in given if rule != 'largest')
    print(f'without the rule largest, which the start has: {choice.why}', flush=True)


def _compare(config: ConfigDict, place: epath.Path) -> verdict.Verdict:
  """Scores both on the held-out scans.

  Whatever prevents the comparison is its outcome: training is whole, and is exported.
  """
  folder, report = place / _START, place / 'comparison.md'
  report.unlink(missing_ok=True)  # of an earlier start of this command
  known = checkpoint.load_config(folder).classes
  new = tuple(name for name in config.classes if name not in known)
  try:
    print('\nThe fine-tuned model on the held-out scans:', flush=True)
    evaluate.evaluate(checkpoint.for_evaluation(place, config), place)
    if not set(config.classes) & set(known):
      return verdict.Verdict(None, new, 'it knows none of your classes')
    print('\nThe start on the same scans:', flush=True)
    evaluate.evaluate(evaluation_of_start(config, folder), folder, beside=[place])
    result = verdict.judge(score_files.read(folder), score_files.read(place), new)
  except evaluate.NothingHeldOutError as error:
    return verdict.Verdict(None, new, one_line(error))
  except UserError as error:
    return verdict.Verdict(None, new, one_line(error), failed=True)
  if result.comparison is not None:
    with writing(place):
      report.write_text(compare.to_markdown(result.comparison), encoding='utf-8')
  return result


def evaluation_of_start(config: ConfigDict, start: epath.Path) -> ConfigDict:
  """How the start is scored: on the scans of a run and as the run is, with all that it knows.

  Its classes compete where the run has none of them, as they do in a prediction, and its masks are
  cleaned by its own rules: where it is the better one, it is exported with them.

  Args:
    config: of the run.
    start: its model folder.
  """
  other = checkpoint.load_config(start)
  other.data_dir, other.data.sources = config.data_dir, config.data.sources
  other.data.fold = -1
  rules = other.evaluation.postprocess
  other.evaluation = config.evaluation.copy_and_resolve_references()
  other.evaluation.checkpoint, other.evaluation.postprocess = 'last', rules
  return other


def _export(place: epath.Path, result: verdict.Verdict) -> None:
  """Writes WORKDIR/model, in place of one of an earlier start of this command."""
  _export_whole(str(place / _START if result.keeps_start else place), place / 'model')


def _export_whole(model: str, folder: epath.Path) -> None:
  """Writes a model folder, which is there only once it is whole."""
  made = folder.parent / f'.{folder.name}'
  with writing(folder.parent):
    made.rmtree(missing_ok=True)
    export(model, made)
    folder.rmtree(missing_ok=True)
    made.rename(folder)


def _next(place: epath.Path) -> list[str]:
  model = shlex.quote(str(place / 'model'))
  return [spoken(f'  python -m mome_jax.predict --checkpoint={model} --input=SCAN --output=out')]
