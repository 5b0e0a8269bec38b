"""Cross-validates an experiment: trains and scores every fold, pools the scores, joins the models.

  python -m mome_jax.crossval --config=openkbp_cpu --workdir=runs/folds --config.data.folds=5

Takes what training takes; the sources must be prepared with --folds. `WORKDIR/fold_0` and the
others are ordinary workdirs, each trained without the cases that its fold holds out and scored on
them. Then `WORKDIR/evaluation` has the scores of all cases, each by the one model that did not see
it, and `WORKDIR` itself is an ensemble: `mome predict --checkpoint=WORKDIR`.

One fold runs at a time. The same command again goes on where it stopped: folds that are trained and
scored are not repeated; with other values than theirs it is refused. On a cluster, each fold can be
trained on its own, with --config.data.fold=0 and --workdir=WORKDIR/fold_0; this command then pools
them.

Exit code 0 if all was done; that of the fold which ended otherwise; 75 after a preemption.
"""

import functools
import sys
import time
from collections.abc import Sequence

from input_pipeline import stopping
from input_pipeline.cli import spoken
from mome_jax.errors import command, writing
from mome_jax.training import command_line, config_flag

_FLAGS = ('config', 'workdir', 'help')
make_parser = functools.partial(
  command_line.make_parser, __doc__, _FLAGS, prog='python -m mome_jax.crossval'
)


@command
@stopping.resumable
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  words = list(sys.argv[1:] if argv is None else argv)
  values = command_line.parse([sys.argv[0], *words])
  if values.help:
    print(command_line.help_text(values, __doc__, _FLAGS))
    return 0
  if values.mode != 'train' or values.distributed:
    raise config_flag.FlagError(
      'folds are trained one after another, each by one process; for several, or another --mode, '
      + spoken('use python -m mome_jax.main with --config.data.fold for each')
    )
  from mome_jax import checkpoint
  from mome_jax.crossval import pool
  from mome_jax.evaluate import tables
  from mome_jax.runtime import compilation, program
  from mome_jax.training import config_check, forecast

  config, workdir = values.config, checkpoint.own_folder(values.workdir)
  names = pool.names(config)
  begun = [workdir / name for name in names if checkpoint.goes_on(workdir / name)]
  # What the folds start from may be gone once all of them have begun.
  config_check.check(config, model=str(begun[0]) if begun and len(begun) == len(names) else '')
  pool.check(config)
  with writing(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
  done = []  # all are looked at first: what cannot be pooled is told before others are trained
  for fold, name in enumerate(names):
    of_fold = workdir / name, pool.of_fold(config, fold)
    done.append(pool.is_done(*of_fold))
    if done[fold] and not pool.has_scores(*of_fold):
      print(f'{name}: its scores are not of what it holds out; it is scored again', flush=True)
      done[fold] = False
  left = done.count(False)
  if left:
    pool.check_folds(config, [fold for fold, is_done in enumerate(done) if not is_done])
    compilation.use_cache()  # it knows how long steps took
    print(forecast.of_folds(config, left), flush=True)
  for fold, name in enumerate(names):
    print(f'{name} of {len(names)}{": trained and scored already" * done[fold]}', flush=True)
    if done[fold]:
      continue
    place = [f'--workdir={workdir / name}', f'--config.data.fold={fold}']
    begins, since = not (workdir / name).exists(), time.monotonic()
    code = program.run('mome_jax.main', *words, *place)  # of a flag given twice the last counts
    if code:
      print(f'{name} ended; {left} of {len(names)} folds are left: the same command goes on',
            file=sys.stderr)  # fmt: skip
      return code
    left -= 1
    if left and begins:
      print(forecast.after_fold(left, time.monotonic() - since), flush=True)
  means, table = pool.pool(workdir, config)
  shown = ', '.join(tables.percent(mean) for mean in means.values())
  print(f'\n{table}\n\nMean Dice of the folds: {shown}')
  print(f'Table and scores: {workdir}/evaluation\nEnsemble: mome predict --checkpoint={workdir}')
  return 0
