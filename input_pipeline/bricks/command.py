"""The command that a source was prepared by, for messages that ask for it again."""

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline import sources
from input_pipeline.cli import spoken

DOWNLOADED = 'DOWNLOADED'  # stands for a folder that nobody noted
_BUILT_IN = 'phantom'  # sources that draw their scans: they need no folder


def prepare_command(
  data_dir: str | os.PathLike, name: str, report: Mapping[str, Any] | None, *options: str
) -> str:
  """What to type to prepare a source, again or for the first time.

  Args:
    data_dir: of the prepared sources.
    name: of the prepared source.
    report: what `prepare` left of it; None: it is not prepared.
    *options: further ones.
  """
  known = report or {}
  settings = known.get('settings', {})
  # What nobody prepared may be meant to have a name of its own.
  source = settings.get('source', name if name in sources.SOURCES else 'SOURCE')
  words = ['python -m input_pipeline.prepare', f'--source={source}']
  # Earlier versions did not note the folder.
  folder = known.get('manual_dir', None if source.startswith(_BUILT_IN) else DOWNLOADED)
  if folder:
    words.append(f'--manual_dir={shlex.quote(folder)}')
  if name != source:
    words.append(f'--name={name}')
  words.append(f'--data_dir={shlex.quote(os.fspath(data_dir))}')
  if 'spacing' in settings and 'brick' in settings:
    words.append(f'--spacing={",".join(f"{mm:g}" for mm in settings["spacing"])}')
    words.append(f'--brick={settings["brick"]}')
  words += which_cases(known)
  return spoken(' '.join([*words, *(option for option in options if option not in words)]))


def suited_to(spacing: Sequence[float], patch: Sequence[int]) -> tuple[str, str]:
  """The options for training at a spacing, (3,) mm, on patches of (3,) voxels."""
  return f'--spacing={",".join(f"{mm:g}" for mm in spacing)}', f'--brick={edge_for(patch)}'


def edge_for(patch: Sequence[int]) -> int:
  """Edge of the bricks that suits a patch of (3,) voxels: a few of them make one."""
  return 32 if min(patch) < 64 else 64


def which_cases(report: Mapping[str, Any]) -> list[str]:
  """The options that said which cases were prepared, and in which split."""
  limit, words = report.get('settings', {}).get('limit'), []
  if limit:
    words.append(f'--cases={limit}')
  if report.get('groups'):
    words.append(f'--groups={shlex.quote(report.get("groups_file") or "GROUPS.json")}')
  if 'assigned' in report:
    words.append('--folds')
  return words
