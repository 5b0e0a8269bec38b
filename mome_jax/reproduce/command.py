"""Reproduces the paper's experiment: from the downloads of ten dataset families to its tables.

  python -m mome_jax.reproduce --downloads=DIR --work=DIR
  python -m mome_jax.reproduce --downloads=DIR --work=DIR --status

DIR/SOURCE holds the download of each source (mome prepare --list names them; --download
SOURCE=FOLDER where one lies elsewhere). What is missing or cannot be used is told with its effect,
and gone without. The same command goes on where it stopped, after a kill, a preemption or with
further downloads.

Exit code 0 if all of it was done; 1 if downloads or scans were left out, which the end tells again;
that of a training which ended otherwise; 75 after a preemption.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

from input_pipeline import cli, stopping
from mome_jax.errors import UserError, command, one_line, writing
from mome_jax.reproduce import families
from mome_jax.reproduce.stages import STAGES, Plan, StageError, StoppedError, usable

BASELINES = ('baseline_unet', 'baseline_swin_unetr')  # their text is frozen
MODELS = ('paper_unet', 'paper_swin_unetr')


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = cli.Parser(prog='python -m mome_jax.reproduce', description=__doc__, allow_abbrev=False)
  add = parser.add_argument
  add('--downloads', type=pathlib.Path, metavar='DIR', help='a folder for each source, by its name')
  add('--download', action='append', default=[], metavar='SOURCE=FOLDER', help='of one elsewhere')
  add('--work', type=pathlib.Path, required=True, metavar='DIR', help='of all that is made')
  add(
    '--models', type=cli.names, default=(),
    help='configs, separated by commas, the first the one to compare with; '
    f'default {",".join(MODELS)}, with --vectors {",".join(BASELINES)} before them',
  )  # fmt: skip
  add(
    '--vectors', metavar='FILE', help="text vectors of the baselines: mome embed's, or CUM's file"
  )
  add('--until', choices=[stage.name for stage in STAGES], help='the last stage to run')
  add('--status', action='store_true', help='print what is done and what is next, and end')
  add('--spacing', type=cli.spacing, default=(1.5, 1.5, 1.5), help='mm: X,Y,Z or one number (1.5)')
  add('--brick', type=cli.at_least(1), default=64, help='voxels along an edge (64)')
  return parser


@command
@stopping.resumable
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  words = list(sys.argv[1:] if argv is None else argv)
  changes = [word for word in words if word.startswith('--config.')]
  parser = make_parser()
  args = parser.parse_args(cli.dashed([word for word in words if word not in changes]))
  if args.downloads is None and not args.download:
    parser.error('needs --downloads, or --download for each source')
  from mome_jax.training.config_flag import FlagError

  try:
    plan = make_plan(args, changes)
  except FlagError as error:
    print(f'error: {one_line(error)} (mome train --help lists the flags)', file=sys.stderr)
    return 2
  plan, left_out = usable(plan)
  _introduce(plan, left_out)
  if args.status:
    _print_status(plan)
    return 0
  with writing(plan.work):
    plan.work.mkdir(parents=True, exist_ok=True)
  undone = {source: f'{source}: {why}' for source, why in left_out.items()}
  for number, stage in enumerate(STAGES, 1):
    print(f'\n[{number}/{len(STAGES)}] {stage.name}: {stage.what}', flush=True)
    try:
      undone |= {line.partition(':')[0]: line for line in stage.run(plan)}
    except StoppedError as stopped:
      print(f'{stage.name} stopped (exit code {stopped.code}); the same command goes on from here',
            file=sys.stderr)  # fmt: skip
      return stopped.code
    if stage.name == args.until:
      break
  for line in undone.values():
    print(f'left out: {line}', file=sys.stderr)
  return 1 if undone else 0


# What cannot be changed beside the options, and what to do instead.
_REFUSED = {
  '--config.data.spacing': 'is set by --spacing; give that',
  '--config.data.sources': 'is set by --downloads and --download; give that',
  '--config.data_dir': 'is set by --work; give that',
  '--config.text.vectors': 'is set by --vectors; give that',
  '--config.evaluation.prompts': 'the tables are of the default prompts; score with others '
  'afterwards, by mome evaluate --workdir=WORK/runs/MODEL',
  '--config.evaluation.split': 'the tables are of every split; leave it out',
}
# Of the text encoder of the others, which a model with frozen text has not.
_OF_ENCODER = ('--config.init.text', '--config.train.text_rate')


def make_plan(args: argparse.Namespace, changes: Sequence[str]) -> Plan:
  """What the options ask for.

  Raises:
    StageError: if an option is none, or a baseline has no vectors.
    FlagError: if a config or one of its changes is none.
    DownloadError: see `families.find`.
  """
  from mome_jax.training import command_line

  for change in changes:
    name = change.partition('=')[0]
    if name in _REFUSED:
      raise StageError(f'{name}: {_REFUSED[name]}')
  given = {}
  for word in args.download:
    source, equals, folder = word.partition('=')
    if not equals:
      raise StageError(f'--download {word}: expected SOURCE=FOLDER')
    given[source] = folder
  names = args.models or [*(BASELINES if args.vectors else ()), *MODELS]
  vectors = args.vectors and pathlib.Path(args.vectors).absolute()
  if vectors and not vectors.is_file():
    raise StageError(f'--vectors={args.vectors}: no such file; mome embed makes one')
  models, classes = {}, ()
  for name in names:
    words = [f'--config={name}', *changes]
    config = command_line.parse(['reproduce', *words, '--workdir=.']).config
    if os.path.isabs(name):
      raise StageError(
        f'--models {name}: the run would be called by its path; go to its folder and give '
        f'{os.path.basename(name)}'
      )
    if config.text.mode == 'frozen':
      words = [word for word in words if word.partition('=')[0] not in _OF_ENCODER]
    if config.text.mode == 'frozen' and not config.text.vectors:
      if not vectors:
        raise StageError(
          f'{name}: frozen text needs its vectors; make them with mome embed and give '
          '--vectors=FILE, or choose other --models'
        )
      words.append(f'--config.text.vectors={vectors}')
    models[name] = tuple(words)
    classes = classes or tuple(config.classes)
  x, *rest = (float(number) for number in args.spacing)
  y, z = rest or (x, x)
  return Plan(
    args.work.absolute(), families.find(args.downloads, given), models, classes,
    (x, y, z), args.brick,
  )  # fmt: skip


def _introduce(plan: Plan, left_out: Mapping[str, str]) -> None:
  """Prints what is here, what is not, and what that costs.

  Args:
    plan: of the downloads that can be used.
    left_out: source -> why its download cannot be.
  """
  print(f'{len(plan.downloads)} of {len(families.SOURCES)} downloads are here:')
  for download in plan.downloads:
    kind = 'scored only' if download.external else 'trained and scored'
    print(f'  {download.family:16} {download.source:20} {kind:20} {download.folder}')
  for source, why in left_out.items():
    print(f'  left out: {source}: {why}')
  present = [download.source for download in plan.downloads]
  for line in families.lost(present, plan.classes):
    print(f'  {line}')
  missing = families.unlabelled(present, plan.classes)
  if len(missing) == len(plan.classes):
    why = f'; {", ".join(left_out)} cannot be used, for the reasons above' if left_out else ''
    raise UserError(
      f'not one class of the experiment is labelled by the downloads that are here{why}'
    )


def _print_status(plan: Plan) -> None:
  """Prints what of each stage is left; the first with something left is next."""
  arrow = 'next'
  print()
  for stage in STAGES:
    left = stage.left(plan)
    text = 'done' if not left else ('to do' if left == ['all'] else f'left: {", ".join(left)}')
    mark = arrow if left else ''
    arrow = '' if left else arrow
    print(f'  {mark:5}{stage.name:10}{text}')
