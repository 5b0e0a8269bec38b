"""Cross-validates an experiment: trains and scores every fold, pools the scores, joins the models.

  python -m mome_jax.crossval --config=openkbp_cpu --workdir=runs/folds --config.data.folds=5

Takes what training takes; the sources must be prepared with --folds. `WORKDIR/fold_0` and the
others are ordinary workdirs, each trained without the cases that its fold holds out and scored on
them. Then `WORKDIR/evaluation` has the scores of all cases, each by the one model that did not see
it, and `WORKDIR` itself is an ensemble: `mome predict --checkpoint=WORKDIR`.

One fold runs at a time. The same command again goes on where it stopped: folds that are trained and
scored are not repeated. On a cluster, each fold can be trained on its own, with
--config.data.fold=0 and --workdir=WORKDIR/fold_0; this command then pools them.

Exit code 0 if all was done; that of the fold which ended otherwise (75 after a preemption).
"""

import functools
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from etils import epath

from mome_jax.errors import UserError, command, one_line, writing
from mome_jax.training import command_line, config_flag

make_parser = functools.partial(
  command_line.make_parser, __doc__, prog='python -m mome_jax.crossval'
)


class CrossValidationError(UserError):
  """The folds cannot be pooled; the message names the fix."""


@command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  words = list(sys.argv[1:] if argv is None else argv)
  try:
    values = command_line.parse([sys.argv[0], *words])
    if not values.help and (values.mode != 'train' or values.distributed):
      raise config_flag.FlagError(
        'folds are trained one after another, each by one process; for several, or another --mode, '
        'use python -m mome_jax.main with --config.data.fold for each'
      )
  except config_flag.FlagError as error:
    print(f'error: {one_line(error)} (--help lists the flags)', file=sys.stderr)
    return 2
  if values.help:
    print(command_line.help_text(values, __doc__))
    return 0
  from mome_jax.training import config_check

  config, workdir = values.config, epath.Path(values.workdir)
  names = [f'fold_{fold}' for fold in range(config.data.folds)]
  config_check.check(config)
  with writing(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
  for fold, name in enumerate(names):
    if is_scored(workdir / name, config.train.steps):
      print(f'{name} of {len(names)}: trained and scored already', flush=True)
      continue
    print(f'{name} of {len(names)}', flush=True)
    place = [f'--workdir={workdir / name}', f'--config.data.fold={fold}']
    code = _run([sys.executable, '-m', 'mome_jax.main', *_without_workdir(words), *place])
    if code:
      left = len(names) - fold
      print(f'{name} ended; {left} of {len(names)} folds are left: the same command goes on',
            file=sys.stderr)  # fmt: skip
      return code
  pool(workdir, names)
  return 0


def is_scored(workdir: epath.Path, steps: int) -> bool:
  """Whether a fold is trained for so many steps and scored after the last of them."""
  summary = workdir / 'evaluation' / 'summary.json'
  return summary.is_file() and (json.loads(summary.read_text()).get('step') or 0) >= steps


def pool(workdir: epath.Path, names: Sequence[str]) -> dict[str, Any]:
  """Writes the scores of all folds as one evaluation, and makes an ensemble of their models.

  Args:
    workdir: that holds the folds.
    names: of their folders.

  Returns:
    The summary; see `metrics.summarize`.

  Raises:
    CrossValidationError: if a fold has no scores.
  """
  from mome_jax import checkpoint
  from mome_jax.evaluate import metrics, score_files

  parts = {}
  for name in names:
    try:
      parts[name] = score_files.read(workdir / name)
    except score_files.ResultsError as error:
      raise CrossValidationError(
        f'{workdir / name}: no scores to pool; train and evaluate that fold'
      ) from error
  rows = [row for part in parts.values() for row in part]
  cases = {(row['source'], row['case']) for row in rows}
  title = f'{len(cases)} scans, each by the one of {len(names)} models that was not trained on it'
  means = {name: metrics.summarize(part)['mean_dice'] for name, part in parts.items()}
  origin = {'split': 'validation', 'folds': means}
  summary, table = score_files.write(workdir / 'evaluation', rows, title=title, origin=origin)
  checkpoint.write_members(workdir, names)
  shown = ', '.join(f'{100 * mean:.1f}' for mean in means.values())
  print(f'\n{table}\n\nMean Dice of the folds: {shown}\nTable and scores: {workdir}/evaluation')
  print(f'Ensemble: mome predict --checkpoint={workdir}')
  return summary


def _without_workdir(words: Sequence[str]) -> list[str]:
  kept, skip = [], False
  for word in words:
    if skip:
      skip = False
    elif word in ('--workdir', '-workdir'):
      skip = True
    elif not word.startswith(('--workdir=', '-workdir=')):
      kept.append(word)
  return kept


def _run(words: Sequence[str]) -> int:
  """The exit code of a process, which gets to know what this one is asked to do."""
  with subprocess.Popen(words) as process:
    before = signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
    try:
      while True:
        try:
          code = process.wait()
          return code if code >= 0 else 128 - code
        except KeyboardInterrupt:  # the process got it too, and saves
          continue
    finally:
      signal.signal(signal.SIGTERM, before)


if __name__ == '__main__':
  sys.exit(main())
