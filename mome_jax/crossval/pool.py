"""The folds of a cross-validation: which are done, and what they say together."""

import shlex
from collections.abc import Iterable
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from input_pipeline import bricks
from input_pipeline.bricks.command import suited_to
from input_pipeline.patients import folds
from mome_jax import checkpoint
from mome_jax.errors import ConfigError, UserError
from mome_jax.evaluate import metrics, score_checkpoint, score_files
from mome_jax.training import unlearnable

_SCORES = score_files.FOLDERS['validation']  # a fold scores what it holds out, and the pool all


class CrossValidationError(UserError):
  """The folds are not of one experiment, or cannot be pooled; the message names the fix."""


def check(config: ConfigDict) -> None:
  """CrossValidationError without folds, or where scores would not be of what they hold out."""
  if config.data.folds < 2:
    raise CrossValidationError(f'config.data.folds is {config.data.folds}; expected 2 and more')
  evaluation = config.evaluation
  for name, other in (('split', 'test'), ('prompts', 'held_out')):
    if evaluation[name] == other:
      raise CrossValidationError(
        f'config.evaluation.{name} is {other!r}: folds are pooled over the cases that they hold '
        'out, asked by their default prompts; leave it out, and evaluate a fold that way afterwards'
      )


def names(config: ConfigDict) -> list[str]:
  """Folders of the folds: 'fold_0' and so on."""
  return [f'fold_{fold}' for fold in range(config.data.folds)]


def of_fold(config: ConfigDict, fold: int) -> ConfigDict:
  """The experiment with one of its folds held out."""
  config = config.copy_and_resolve_references()
  config.data.fold = fold
  return config


def check_folds(config: ConfigDict, left: Iterable[int]) -> None:
  """Refuses what training would refuse of a fold's scans, before others are trained.

  Args:
    config: of the experiment.
    left: the folds that are to be trained.

  Raises:
    FoldError: if there are fewer patients than folds.
    NotPreparedError: if a source is not prepared with folds.
    CrossValidationError: if a fold holds out every scan that shows a class.
  """
  data = config.data
  template = bricks.read_template(
    config.data_dir,
    data.sources,
    config.new_classes,
    options=(*suited_to(data.spacing, data.patch), '--folds'),
  )
  for fold in left:
    held_out = folds.of_run(of_fold(config, fold))
    stores = [bricks.open_bricks(config.data_dir, n, template, held_out) for n in data.sources]
    try:
      unlearnable.check(stores, config.classes)
    except ConfigError as error:
      raise CrossValidationError(
        f'fold_{fold} of {data.folds} leaves nothing to learn from: {error}'
      ) from error


def is_done(workdir: epath.Path, config: ConfigDict) -> bool:
  """Whether a fold is trained for all steps, and the checkpoint that counts was scored.

  One that ended early, by `validation.patience`, is not: training it again ends at once, and scores
  it again.

  Args:
    workdir: of the fold.
    config: of the fold.

  Raises:
    CrossValidationError: if it was trained or scored with other values.
  """
  if not checkpoint.goes_on(workdir):
    return False
  other = checkpoint.other_values(workdir, config)
  # Not those it was described with, but those it was scored with count: see below.
  if values := ', '.join(v for name, v in other.items() if not name.startswith('evaluation.')):
    raise CrossValidationError(
      f'{workdir}: a fold of another experiment: {values}; choose another --workdir, or remove '
      'that folder'
    )
  newest = checkpoint.locate(workdir).step
  chosen = checkpoint.locate(workdir, config.evaluation.checkpoint).step
  # Not by the times of files: hosts that share a disk need not agree on the time.
  summary = score_files.read_summary(workdir / _SCORES)
  if newest is None or newest < config.train.steps or summary.get('step') != chosen:
    return False
  now = score_checkpoint.settings(config)
  # Earlier versions did not write it, and scored as the fold is described.
  before = score_checkpoint.settings(checkpoint.load_config(workdir))
  before |= summary.get('evaluation', {})
  if changed := [name for name in now if before[name] != now[name]]:
    values = ', '.join(f'{name}: {before[name]} -> {now[name]}' for name in changed)
    flags = ' '.join(_flag(f'evaluation.{name}', now[name]) for name in changed)
    raise CrossValidationError(
      f'{workdir}: scored with other values of config.evaluation: {values}; give those, or score '
      f'it again with these: mome evaluate --workdir={workdir} {flags}'
    )
  return True


def _flag(name: str, value: Any) -> str:
  """A value of the config as a shell takes it; of JSON, which has no tuples."""
  return shlex.quote(f'--config.{name}={tuple(value) if isinstance(value, list) else value}')


def has_scores(workdir: epath.Path, config: ConfigDict) -> bool:
  """Whether the scores of a fold that is done are of what it holds out.

  `mome evaluate` of other data puts others in their place; scoring it again mends that.

  Args:
    workdir: of the fold.
    config: of the fold.

  Raises:
    CheckpointError: if they are not, since the prepared cases have changed after its training.
  """
  try:
    scores(workdir, config)
  except CrossValidationError:
    digests = {store.name: store.digest() for store in _stores(config)}
    checkpoint.check_same_data(workdir, checkpoint.read_position(workdir), digests)
    return False
  return True


def scores(workdir: epath.Path, config: ConfigDict) -> list[dict[str, Any]]:
  """The scores of a fold that is done: of all cases that it holds out, and of no other.

  Args:
    workdir: of the fold.
    config: of the fold.

  Raises:
    CrossValidationError: if it has none, scored cases that it does not hold out, or did not score
      one that it does, labels a class of it and is in no training of its model.
  """
  try:
    rows = score_files.read(workdir)
  except score_files.ResultsError as error:
    raise CrossValidationError(
      f'{workdir}: no scores to pool; train and evaluate that fold'
    ) from error
  held_out = folds.of_run(config) or frozenset()
  scored = {(row['source'], row['case']) for row in rows}
  if others := sorted(scored - held_out):
    raise CrossValidationError(
      f'{workdir}: scored {"/".join(others[0])}, which another fold holds out now: the prepared '
      'cases have changed since; choose another --workdir'
    )
  lacking = held_out - scored - {(one['source'], one['case']) for one in _left_out(workdir)}
  if missing := sorted(lacking - _unlabelled(config) if lacking else ()):
    raise CrossValidationError(
      f'{workdir}: did not score {"/".join(missing[0])}, which it holds out now: the prepared '
      'cases have changed since; choose another --workdir'
    )
  return rows


def _left_out(workdir: epath.Path) -> list[dict[str, str]]:
  """The cases that a fold did not score, as its model was trained on them elsewhere."""
  return score_files.read_summary(workdir / _SCORES).get('left_out', [])


def _unlabelled(config: ConfigDict) -> set[bricks.Key]:
  """The cases that label no class of the experiment, and have no score."""
  classes = set(config.classes)
  cases = [case for store in _stores(config) for case in store.cases]
  return {case.key for case in cases if classes.isdisjoint(case.supervised)}


def _stores(config: ConfigDict) -> list[bricks.BrickStore]:
  """The sources of the experiment, with the cases of all folds."""
  return [bricks.open_bricks(config.data_dir, name, held_out=()) for name in config.data.sources]


def pool(workdir: epath.Path, config: ConfigDict) -> tuple[dict[str, float | None], str]:
  """Writes the scores of all folds as one evaluation, and makes an ensemble of their models.

  Args:
    workdir: that holds the folds, all of them done.
    config: of the experiment.

  Returns:
    The mean Dice of each fold by its name, None where no case has one; and the table of all cases
    as Markdown.

  Raises:
    CrossValidationError: as `scores`.
  """
  parts, left_out = {}, []
  for fold, name in enumerate(names(config)):
    parts[name] = scores(workdir / name, of_fold(config, fold))
    left_out += _left_out(workdir / name)
  rows = [row for part in parts.values() for row in part]
  count = len({(row['source'], row['case']) for row in rows})
  title = f'{count} scans, each by the one of {len(parts)} models that was not trained on it'
  if left_out:
    title += f', {len(left_out)} more left out since the model of their fold was trained on them'
  means = {name: metrics.summarize(part)['mean_dice'] for name, part in parts.items()}
  origin = {'split': 'validation', 'folds': means, 'left_out': left_out}
  _, table = score_files.write(workdir / _SCORES, rows, title=title, origin=origin)
  checkpoint.write_members(workdir, list(parts))
  return means, table
