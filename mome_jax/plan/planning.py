"""What the command `plan` does, once its options are read."""

import argparse
import functools
import pathlib
import shlex
import sys
from collections.abc import Sequence

import numpy as np

from input_pipeline.bricks.command import DOWNLOADED, suited_to
from input_pipeline.cli import spoken
from mome_jax.plan import config_file, report, target, trial
from mome_jax.plan.cohort import Cohort, CohortError, Origin, read_cohort
from mome_jax.plan.experiment import Experiment
from mome_jax.plan.fit import Attempt, fit
from mome_jax.plan.rules import Layout, Room, layout

_WIDTH = 90  # of a command
_NEAR = 0.15  # of a spacing: augmentation zooms by more, so what is prepared nearer is good enough


def run(args: argparse.Namespace) -> int:
  """Plans as the options of `command.make_parser` say, and prints it; returns the exit code."""
  names = _names(args)
  if args.output:
    config_file.check_free(args.output, force=args.force)
  aim = target.find_target(args.topology, args.memory, args.hours, args.size)
  cohort = read_cohort(names, args.data_dir, args.scans, name=args.name)
  print(report.fingerprint(cohort))
  print(f'\nPlanning for {aim.words}\n', flush=True)
  experiment = Experiment(cohort, aim, args.data_dir)
  attempts = _fit(experiment, args)
  best = attempts[-1]
  choices = experiment.choices(best.layout, best)
  print(report.plan(choices))
  print(report.memory(aim, attempts))
  commands = _commands(cohort, best.layout, args)
  if args.output:
    head = f'Planned for {report.title(cohort)}, on {aim.words}'
    content = config_file.text(head, commands, experiment.start, choices)
    config_file.write(args.output, content, force=args.force)
    print(f'\nWrote {args.output}. Next:')
  else:
    print('\nNothing was written: --output=NAME.py writes the config. Then:')
  print(spoken('\n'.join(f'  {line}' for line in commands)))
  return 0


def _names(args: argparse.Namespace) -> list[tuple[str, str | None]]:
  """(source, folder) of each."""
  names = []
  for word in filter(None, args.sources.split(',')):
    name, equals, folder = word.partition('=')
    names.append((name.strip(), folder if equals else args.manual_dir))
  if not names or len(dict(names)) < len(names):
    raise CohortError(f'--sources={args.sources}: expected different names, as openkbp,phantom')
  if args.name and len(names) > 1:
    raise CohortError(f'--name={args.name}: there are {len(names)} sources; name one')
  return names


def _fit(experiment: Experiment, args: argparse.Namespace) -> list[Attempt]:
  cohort, aim = experiment.cohort, experiment.target

  def arrange(room: Room) -> Layout:
    place = functools.partial(layout, cohort, room, stride=experiment.stride)
    if args.spacing:
      return place(spacing=args.spacing, why='as given')
    free = place()
    prepared = cohort.prepared_spacing
    if prepared is None or not np.allclose(prepared, free.spacing, rtol=_NEAR):
      return free
    rule = ' x '.join(f'{mm:g}' for mm in free.spacing)
    return place(spacing=prepared, why=f'prepared so; the rules give {rule}: {free.why_spacing}')

  def compile_layout(planned: Layout) -> trial.Trial:
    return trial.run(
      experiment.config(planned),
      aim.machine,
      execute=aim.here,
      folder=_answers(),
      again=args.again,
    )

  attempts = fit(
    cohort, aim.machine, aim.budget, arrange, compile_layout,
    size=aim.size,
    tell=lambda line: print(line, file=sys.stderr, flush=True),
  )  # fmt: skip
  remark = target.busy() if aim.on_cpu else ''
  if remark:
    print(f'note: {remark}', file=sys.stderr)
  return attempts


def _commands(cohort: Cohort, chosen: Layout, args: argparse.Namespace) -> list[str]:
  """Lines that prepare what is not prepared so, and train."""
  lines = [
    line
    for origin in cohort.origins
    if not origin.is_prepared(chosen.spacing)
    for line in _broken(_prepare(origin, chosen, args.data_dir))
  ]
  file = str(args.output or 'NAME.py')
  workdir = f'runs/{args.output.stem if args.output else "NAME"}'
  train = ['python -m mome_jax.main', f'--config={shlex.quote(file)}', f'--workdir={workdir}']
  return [*lines, *_broken(train)]


def _answers() -> pathlib.Path | None:
  """Where answers of the compiler are kept: beside its programs, if that is a folder here."""
  from mome_jax.runtime import compilation

  folder = compilation.cache_folder()
  return pathlib.Path(folder, 'plan') if folder and '://' not in folder else None


def _prepare(origin: Origin, chosen: Layout, data_dir: str) -> list[str]:
  words = ['python -m input_pipeline.prepare', f'--source={origin.source}']
  if origin.folder:
    words.append(f'--manual_dir={shlex.quote(origin.folder)}')
  elif origin.prepared is not None and not origin.source.startswith('phantom'):
    words.append(f'--manual_dir={DOWNLOADED}')  # earlier versions did not note it
  name = origin.name_at(chosen.spacing)
  if name != origin.source:
    words.append(f'--name={name}')
  words.append(f'--data_dir={shlex.quote(data_dir)}')
  return [*words, *suited_to(chosen.spacing, chosen.patch), *origin.options]


def _broken(words: Sequence[str]) -> list[str]:
  """The lines of a shell's command, each short enough to be read."""
  lines = ['']
  for word in words:
    if lines[-1] and len(lines[-1]) + len(word) > _WIDTH:
      lines[-1] += ' \\'
      lines.append(f'    {word}')
    else:
      lines[-1] = f'{lines[-1]} {word}'.lstrip() if len(lines) == 1 else f'{lines[-1]} {word}'
  return lines
