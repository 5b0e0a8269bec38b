"""The stages of the experiment. Each finds by itself what is done, and does the rest."""

import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from input_pipeline import bricks, dedupe, prepare, sources
from input_pipeline.bricks import identity
from input_pipeline.files import text_files
from input_pipeline.patients import patient_groups
from input_pipeline.prepare import check as checking
from mome_jax.errors import UserError, few, one_line, writing
from mome_jax.evaluate import score_files
from mome_jax.reproduce import families, tables
from mome_jax.reproduce.families import Download
from mome_jax.runtime import program

NOTES = 'reproduce.json'  # in the work folder: what was checked and compared, of which files


class StageError(UserError):
  """A stage cannot go on; the message names it and the fix."""


class StoppedError(Exception):
  """A stage's own program ended otherwise than with 0, after it said why."""

  def __init__(self, code: int):
    super().__init__(code)
    self.code = code


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is reproduced.

  Attributes:
    work: folder of all that is made.
    downloads: that are here.
    models: name of a config -> flags of its training; first the one to compare others with.
    classes: of the experiment.
    spacing: mm, as `prepare` takes it.
    brick: voxels along an edge.
  """

  work: pathlib.Path
  downloads: Sequence[Download]
  models: Mapping[str, Sequence[str]]
  classes: Sequence[str]
  spacing: tuple[float, float, float]
  brick: int

  @property
  def data_dir(self) -> pathlib.Path:
    """Of the prepared sources."""
    return self.work / 'data'

  @property
  def groups(self) -> pathlib.Path:
    """Which scans are of one patient."""
    return self.work / 'groups.json'

  def run(self, model: str) -> pathlib.Path:
    """Workdir of a model."""
    return self.work / 'runs' / model

  def external(self, model: str) -> pathlib.Path:
    """Folder of a model with its scores on datasets that are scored only."""
    return self.work / 'external' / model

  def trained(self) -> list[str]:
    """Sources that are trained on and prepared."""
    return self._prepared(external=False)

  def scored_only(self) -> list[str]:
    """Sources that are scored only and prepared."""
    return self._prepared(external=True)

  def _prepared(self, *, external: bool) -> list[str]:
    ready = bricks.prepared_sources(self.data_dir)
    return [
      one.source for one in self.downloads if one.external == external and one.source in ready
    ]


def usable(plan: Plan) -> tuple[Plan, dict[str, str]]:
  """The plan without the downloads that cannot be used, and source -> why each of them cannot.

  Its scans are listed; that each of them can be read is for `check` to tell.
  """
  left_out = {}
  for download in plan.downloads:
    source, folder = sources.get_source(download.source), str(download.folder)
    try:
      source.template(folder)
      identity.check_names(source.listed(folder)[0])
    except (UserError, OSError) as error:
      left_out[download.source] = one_line(error)
  downloads = [one for one in plan.downloads if one.source not in left_out]
  return dataclasses.replace(plan, downloads=downloads), left_out


# ---------------------------------------------------------------------------- notes
def read_notes(plan: Plan) -> dict:
  """What earlier runs noted."""
  file = plan.work / NOTES
  try:
    return json.loads(file.read_text(encoding='utf-8')) if file.exists() else {}
  except ValueError as error:
    raise StageError(f'{file}: damaged ({error}); remove it: checks are made again') from error


def _note(plan: Plan, key: str, value: dict) -> None:
  content = json.dumps(read_notes(plan) | {key: value}, indent=1) + '\n'
  with writing(plan.work / NOTES):
    text_files.replace(plan.work / NOTES, content)


def _state(download: Download) -> str:
  """Changes with the cases of a download, their names and scans."""
  cases, _ = sources.get_source(download.source).listed(str(download.folder))
  listed = sorted((case.name, case.split, patient_groups.state_of(case)) for case in cases)
  return hashlib.sha256(repr(listed).encode()).hexdigest()[:24]


# ---------------------------------------------------------------------------- check
def to_check(plan: Plan) -> list[str]:
  """Downloads that were not read yet as they are."""
  notes = read_notes(plan)
  return [
    one.source
    for one in plan.downloads
    if notes.get(f'check {one.source}', {}).get('state') != _state(one)
  ]


def check(plan: Plan) -> list[str]:
  """Reads every scan once; what is wrong goes to `check/SOURCE.txt`. The broken ones are told."""
  left = to_check(plan)
  for download in plan.downloads:
    if download.source not in left:
      continue
    state, lines, broken, number = _state(download), [], [], 0
    for case, findings in checking.check_source(download.source, str(download.folder)):
      number += case != ''
      lines += [f'{one.kind}: {case or download.source}: {one.message}' for one in findings]
      broken += [f'{case}: {one.message}' for one in findings if one.kind == 'error']
    file = plan.work / 'check' / f'{download.source}.txt'
    with writing(file):
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    print(f'{download.source}: {number} scans read, {len(broken)} broken, {len(lines)} remarks '
          f'in {file}', flush=True)  # fmt: skip
    _note(plan, f'check {download.source}', {'state': state, 'cases': number, 'broken': broken})
  notes = read_notes(plan)
  return [
    f'{one.source} {reason}'
    for one in plan.downloads
    for reason in notes[f'check {one.source}']['broken']
  ]


# ---------------------------------------------------------------------------- dedupe
def to_compare(plan: Plan) -> list[str]:
  """['all'] where scans came or changed since they were compared."""
  notes = read_notes(plan).get('dedupe', {})
  same = notes.get('states') == {one.source: _state(one) for one in plan.downloads}
  return [] if same and plan.groups.exists() else ['all']


def compare_scans(plan: Plan) -> list[str]:
  """Finds scans that several downloads hold, so that no patient is trained on and scored."""
  if to_compare(plan):
    states = {one.source: _state(one) for one in plan.downloads}
    downloads = [(one.source, str(one.folder)) for one in plan.downloads]
    dedupe.write_groups(downloads, plan.groups)  # broken scans are told by check
    _note(plan, 'dedupe', {'states': states})
  return []


# ---------------------------------------------------------------------------- prepare
def to_prepare(plan: Plan) -> list[str]:
  """Sources that are not written yet as they are now."""
  ready, notes = bricks.prepared_sources(plan.data_dir), read_notes(plan)
  return [
    one.source
    for one in plan.downloads
    if one.source not in ready or notes.get(f'prepare {one.source}') != _prepared(plan, one)
  ]


def _prepared(plan: Plan, download: Download) -> dict[str, Any]:
  """What is noted of a source that is written as it is now asked for."""
  how = {'spacing': list(plan.spacing), 'brick': plan.brick}
  return {'state': _state(download), 'groups': _digest(plan), **how}


def _digest(plan: Plan) -> str:
  return patient_groups.read(str(plan.groups)).digest if plan.groups.exists() else ''


def write_bricks(plan: Plan) -> list[str]:
  """Converts every download for training and scoring; skipped scans are told."""
  left = to_prepare(plan)
  for download in plan.downloads:
    if download.source not in left:
      continue
    noted = _prepared(plan, download)
    try:
      report = prepare.prepare(
        download.source,
        plan.data_dir,
        manual_dir=str(download.folder),
        groups=str(plan.groups),
        spacing=plan.spacing,
        brick=plan.brick,
      )
    except sources.SourceError as error:
      print(f'{download.source}: left out: {error}', file=sys.stderr, flush=True)
      continue
    print(
      f'{download.source}: {prepare.counted(report)}, {report["bytes"] / 1e6:.1f} MB', flush=True
    )
    _note(plan, f'prepare {download.source}', noted)
  skipped = []
  for download in plan.downloads:
    settings = bricks.read_settings(plan.data_dir, download.source)
    reasons = settings['skipped'] if settings else [('', 'not one scan could be prepared')]
    skipped += [f'{download.source} {case}: {reason}' for case, reason in reasons]
  return skipped


# ---------------------------------------------------------------------------- train, score
def to_train(plan: Plan) -> list[str]:
  """Models that are not trained and scored on every split yet."""
  return [model for model in plan.models if not _is_scored(plan, model)]


def _is_scored(plan: Plan, model: str) -> bool:
  """Whether a run has come to its end, and has scores of it on every split."""
  run = plan.run(model)
  if not _has_ended(run):
    return False
  here = [name for name in plan.trained() if name in _learned(plan, model)]
  return not _lacks_scores(plan, run, here)


def _has_ended(workdir: pathlib.Path) -> bool:
  """Whether a run has come to its end and has scores of it."""
  from mome_jax.checkpoint import files

  steps = [score_files.read_summary(folder).get('step') for folder in tables.folders(workdir)]
  scored = max((step or 0 for step in steps), default=0)
  if not scored or not (workdir / files.CONFIG).exists():
    return False
  values = _values(workdir)
  if values['validation']['patience']:
    return True  # it may have ended early
  newest = max(files.finished_steps(epath.Path(workdir / files.CHECKPOINTS)), default=0)
  is_newest = values['evaluation']['checkpoint'] == files.LAST
  return newest >= values['train']['steps'] and (scored == newest or not is_newest)


def _lacks_scores(plan: Plan, folder: pathlib.Path, names: Sequence[str]) -> bool:
  """Whether a model still has to score a split of some datasets, as it is after its last step.

  Scans that it was trained on are none to score.

  Args:
    plan: whose scans are scored.
    folder: of the model and its scores.
    names: of the datasets.
  """
  from mome_jax.checkpoint import training_cases

  trained = training_cases.of_models([epath.Path(folder)])
  labelled = [name for name in names if families.rows(name, plan.classes)]
  held_out: dict[str, set[str]] = {}
  for case in (case for name in labelled for case in bricks.held_out_cases(plan.data_dir, name)):
    if not (trained and trained.reason(case)):
      held_out.setdefault(case.split, set()).add(case.source)
  steps = set()
  for split, of_split in held_out.items():
    summary = score_files.read_summary(folder / score_files.FOLDERS[split])
    if of_split - summary.get('datasets', {}).keys() or _scored_otherwise(folder, summary):
      return True
    steps.add(summary.get('step'))
  return len(steps) > 1


def _scored_otherwise(folder: pathlib.Path, summary: Mapping[str, Any]) -> bool:
  """Whether somebody scored a model since with other values than its own, which count here."""
  scored = summary.get('evaluation', {})  # earlier versions did not write it
  own = _values(folder)['evaluation'] if scored else {}
  return any(own.get(name, value) != value for name, value in scored.items())


def _values(workdir: pathlib.Path) -> dict[str, Any]:
  """The `config.json` of a run."""
  from mome_jax.checkpoint import config_file, files

  return config_file.read_config(epath.Path(workdir / files.CONFIG))


def _came_later(plan: Plan, model: str) -> list[str]:
  """Sources that a trained model has not learned from: they were prepared after it."""
  learned = _learned(plan, model)
  return [name for name in plan.trained() if name not in learned]


def _learned(plan: Plan, model: str) -> tuple[str, ...]:
  """The sources that a run has begun with."""
  return tuple(_values(plan.run(model))['data']['sources'])


def _other_values(plan: Plan, model: str) -> list[str]:
  """'name: old -> new' of what a model is asked to be trained with now, and was not."""
  from mome_jax import checkpoint
  from mome_jax.training import command_line

  words = ['reproduce', *plan.models[model], f'--workdir={plan.run(model)}']
  config = command_line.parse(words).config
  config.data.spacing = plan.spacing
  config.data.sources = _learned(plan, model)  # see `_came_later`
  config.evaluation.split = _values(plan.run(model))['evaluation']['split']  # scores tell it
  return [*checkpoint.other_values(plan.run(model), config).values()]


def train(plan: Plan) -> list[str]:
  """Trains every model on the ten families and scores it on their held-out scans, split by split.

  A training that has begun goes on with the datasets that it began with. A model that was trained
  before a download came, or with other values, stays as it is: that is told.
  """
  from mome_jax import checkpoint

  names = plan.trained()
  if not names:
    raise StageError('nothing is prepared to train on; see the stage before')
  for model in to_train(plan):
    run = plan.run(model)
    if _has_ended(run):  # trained elsewhere, or killed between two splits
      _evaluate(plan, run, _learned(plan, model))
      continue
    learned = _learned(plan, model) if checkpoint.goes_on(run) else tuple(names)
    print(f'{model}: training on {len(learned)} datasets in {run}', flush=True)
    _program(
      'mome_jax.main', *plan.models[model], f'--workdir={run}',
      f'--config.data_dir={plan.data_dir}', f'--config.data.sources={learned!r}',
      f'--config.data.spacing={plan.spacing!r}', '--config.evaluation.split=all',
    )  # fmt: skip
  return [
    f'{model}: was trained {" and ".join(reasons)}; to train it anew, remove {plan.run(model)} and '
    f'{plan.external(model)}, and give the same command again'
    for model in plan.models
    if (reasons := _outdated(plan, model))
  ]


def _outdated(plan: Plan, model: str) -> list[str]:
  """Why a trained model is not the one that is asked for now, in words."""
  reasons = []
  if later := _came_later(plan, model):
    reasons.append(f'before {", ".join(later)} came')
  if other := _other_values(plan, model):
    reasons.append(f'with other values ({few(other, 8)})')
  return reasons


def to_score(plan: Plan) -> list[str]:
  """Models without scores on all of the datasets that are scored only."""
  names = plan.scored_only()
  return [model for model in plan.models if _lacks_scores(plan, plan.external(model), names)]


def score(plan: Plan) -> list[str]:
  """Scores every model on datasets that it was not trained on; tells of one that was another."""
  for model in to_score(plan):
    folder = plan.external(model)
    if not (folder / 'params').exists():  # which come last
      _note(plan, f'external {model}', {'step': _step(plan, model)})  # else a kill would lose it
      _program('mome_jax.export', f'--checkpoint={plan.run(model)}', f'--output={folder}')
    _evaluate(plan, folder, plan.scored_only())
  notes, lines = read_notes(plan), []
  for model in plan.models:
    step = notes.get(f'external {model}', {}).get('step')
    if step is not None and step != (now := _step(plan, model)):
      lines.append(
        f'{plan.external(model)}: {model} at step {step}, which is at {now} now; remove that '
        'folder, and give the same command again'
      )
  return lines


def _step(plan: Plan, model: str) -> int | None:
  """The step of the checkpoint that counts of a run."""
  from mome_jax import checkpoint

  run = plan.run(model)
  return checkpoint.locate(run, checkpoint.load_config(run).evaluation.checkpoint).step


def _evaluate(plan: Plan, folder: pathlib.Path, names: Sequence[str]) -> None:
  """Scores a model in its folder on every split of some datasets."""
  _program(
    'mome_jax.main', '--mode=evaluate', f'--workdir={folder}',
    f'--config.data_dir={plan.data_dir}', f'--config.data.sources={tuple(names)!r}',
    '--config.evaluation.split=all',
  )  # fmt: skip


def _program(module: str, *words: str) -> None:
  """Runs a module as a program of its own; StoppedError if it ends otherwise than with 0."""
  if code := program.run(module, *words):
    raise StoppedError(code)


# ---------------------------------------------------------------------------- tables
def to_write_tables(plan: Plan) -> list[str]:
  """['all'] where scores came or changed since the tables were written."""
  same = read_notes(plan).get('tables') == _scores(plan)
  return [] if same and (plan.work / 'tables/README.md').exists() else ['all']


def _scores(plan: Plan) -> dict[str, str]:
  """Folder -> what changes with its scores, of all that the tables are made of."""
  places = [place(model) for model in plan.models for place in (plan.run, plan.external)]
  summaries = [folder / score_files.SUMMARY for place in places for folder in tables.folders(place)]
  digest = lambda file: hashlib.sha256(file.read_bytes()).hexdigest()[:24]
  return {str(file.parent.relative_to(plan.work)): digest(file) for file in summaries}


def write_tables(plan: Plan) -> list[str]:
  """Joins the scores of all models to the paper's tables: `tables/README.md`."""
  scores = _scores(plan)
  models = {model: plan.run(model) for model in plan.models if _is_scored(plan, model)}
  others = {model: plan.external(model) for model in models}
  names = plan.trained(), plan.scored_only()
  text = tables.write(plan.work / 'tables', models, others, names, plan.classes)
  _note(plan, 'tables', scores)
  print(text)
  return []


@dataclasses.dataclass(frozen=True)
class Stage:
  """One step of the road.

  Attributes:
    name: as given to `--until`.
    what: it does, for people.
    left: what of it is still to do.
    run: does it; returns what could not be done, a line each.
  """

  name: str
  what: str
  left: Callable[[Plan], list[str]]
  run: Callable[[Plan], list[str]]


STAGES = (
  Stage('check', 'read every scan once', to_check, check),
  Stage('dedupe', 'find scans that several downloads hold', to_compare, compare_scans),
  Stage('prepare', 'write bricks and held-out scans', to_prepare, write_bricks),
  Stage('train', 'train and score the models', to_train, train),
  Stage('external', 'score them on datasets that they never saw', to_score, score),
  Stage('tables', "join the scores to the paper's tables", to_write_tables, write_tables),
)
