r"""Plans an experiment for your data and your device.

  python -m mome_jax.plan --sources=nifti_folder --manual_dir=FOLDER --name=mine \
      --data_dir=runs/data --memory=24GiB --output=mine.py
  python -m mome_jax.plan --sources=openkbp --manual_dir=FOLDER --data_dir=runs/data --hours=0.5 \
      --output=planned.py
  python -m mome_jax.plan --sources=msd_liver=DIR,kits=DIR --data_dir=data --topology=v5e:4 \
      --output=planned.py

Reads the training scans (spacings, sizes, HU, volumes of the classes), chooses spacing, HU windows,
patch, batch, sampling and steps by stated rules, asks the compiler how many bytes a training step
takes until the largest one that fits is known, and writes a config with the reason of each value;
then prints the commands that prepare the data and train. Held-out scans decide nothing.

Without --topology the plan is for this machine; where it has no accelerator and --memory is given
without --hours, for an accelerator of that memory elsewhere.
"""

import argparse
import functools
import pathlib
import re
import shlex
import sys
from collections.abc import Sequence

import numpy as np

from input_pipeline import errors
from input_pipeline.cli import Parser, at_least, dashed, seconds, spacing, spoken
from mome_jax.plan import config_file, report, target
from mome_jax.plan.cohort import Cohort, CohortError, Origin, read_cohort
from mome_jax.plan.experiment import Experiment
from mome_jax.plan.fit import Attempt, fit
from mome_jax.plan.rules import Layout, Room, brick, layout

_UNITS = {'k': 10, 'm': 20, 'g': 30, 't': 40}
_WIDTH = 90  # of a command
_NEAR = 0.15  # of a spacing: augmentation zooms by more, so what is prepared nearer is good enough


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(
    prog='python -m mome_jax.plan',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--sources', required=True, metavar='NAME[=FOLDER],...',
    help='as prepare knows them, each with the folder of its download; or prepared in --data-dir',
  )  # fmt: skip
  parser.add_argument('--manual-dir', help='folder of the download of a source that names none')
  parser.add_argument('--name', help='under which one source is, or will be, prepared')
  parser.add_argument('--data-dir', required=True, help='folder of all prepared sources')
  parser.add_argument('--output', type=pathlib.Path, help='the config to write: NAME.py')
  parser.add_argument('--force', action='store_true', help='replace --output if it is there')
  group = parser.add_argument_group('what to plan for')
  group.add_argument('--memory', type=_bytes, help='of a device: 24GiB (all that is there)')
  group.add_argument('--topology', help='TPUs that are not here: v5e:4, v5e:4x4, v5p:8, v6e:8')
  group.add_argument('--hours', type=seconds, help='of training on this machine (8 on a CPU)')
  group.add_argument('--size', choices=target.SIZES, help='of the network (small on a CPU)')
  group.add_argument('--spacing', type=spacing, help='mm: X,Y,Z or one number, not the rule')
  group.add_argument(
    '--scans', type=at_least(1), default=100, help='at most to read of each source (100)'
  )
  group.add_argument(
    '--again', action='store_true', help='compile anew what was asked before on this machine'
  )
  return parser


def _bytes(text: str) -> int:
  match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*([kmgt])(i?)b?', text.strip(), re.IGNORECASE)
  if not match:
    raise argparse.ArgumentTypeError(f'{text!r}: expected a number with its unit, as 24GiB')
  number, unit, binary = match.groups()
  base = 1024 if binary else 1000
  return int(float(number) * base ** (_UNITS[unit.lower()] // 10))


@errors.command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = make_parser().parse_args(dashed(argv))
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
  choices = experiment.choices(best.layout, best.trial)
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
  from mome_jax.training import compilation

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

  attempts = fit(
    cohort, aim.machine, aim.budget, arrange, experiment.config,
    size=aim.size,
    execute=aim.here,
    folder=pathlib.Path(compilation.cache_folder(), 'plan'),
    again=args.again,
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


def _prepare(origin: Origin, chosen: Layout, data_dir: str) -> list[str]:
  words = ['python -m input_pipeline.prepare', f'--source={origin.source}']
  if origin.folder:
    words.append(f'--manual_dir={shlex.quote(origin.folder)}')
  elif origin.prepared is not None and not origin.source.startswith('phantom'):
    words.append('--manual_dir=DOWNLOADED')  # nobody noted where it was
  name = origin.name_at(chosen.spacing)
  if name != origin.source:
    words.append(f'--name={name}')
  mm = ','.join(f'{edge:g}' for edge in chosen.spacing)
  words += [f'--data_dir={shlex.quote(data_dir)}', f'--spacing={mm}']
  return [*words, f'--brick={brick(chosen.patch)}']


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
