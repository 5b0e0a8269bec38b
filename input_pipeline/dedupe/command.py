r"""Finds the same scan in several datasets, so that no patient is trained on and tested on.

  python -m input_pipeline.dedupe --download=lits=DIR --download=msd_liver=DIR --output=groups.json
  python -m input_pipeline.prepare --source=lits --manual_dir=DIR --groups=groups.json ...

Scans are compared by what they show, so that those of fewer slices, mirrored and resampled ones are
found too, but not one that lies turned by a quarter against its header, and seldom one of which
less than four fifths of the width is left within the slices. What is found, and which scans the
sources say to be of one patient, goes to the file, which `prepare --groups` reads: all scans of a
patient then come into one split. Of two downloads of one source each has a name,
--download=NAME:nifti_folder=DIR, which it is prepared by, with `--name`. Exit code 1 if scans could
not be read: they were compared with none.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from input_pipeline import cli, errors, progress, remarks, sources
from input_pipeline.bricks import identity
from input_pipeline.files import text_files
from input_pipeline.patients import patient_groups


def _parse_download(text: str) -> tuple[str, str]:
  called, equals, folder = text.partition('=')
  if not equals:
    raise argparse.ArgumentTypeError(f'{text!r}: expected SOURCE=FOLDER')
  name, _, source = called.rpartition(':')
  if source not in sources.SOURCES:
    hint = errors.suggest(source, sorted(sources.SOURCES))
    raise argparse.ArgumentTypeError(f'no source is called {source!r}; {hint}')
  if name and cli.identifier(name) in sources.SOURCES:
    raise argparse.ArgumentTypeError(f'{text!r}: {name} is the name of a source; choose another')
  return called, folder


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = cli.Parser(prog='python -m input_pipeline.dedupe', description=__doc__)
  parser.add_argument(
    '--download',
    action='append',
    required=True,
    type=_parse_download,
    metavar='SOURCE=FOLDER',
    help='a dataset, as prepare knows it, and where it lies; may be repeated; NAME:SOURCE=FOLDER '
    'where it is prepared with --name=NAME',
  )
  parser.add_argument('--output', required=True, type=pathlib.Path, help='JSON of the groups')
  return parser


@errors.command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = make_parser().parse_args(cli.dashed(argv))
  return 1 if write_groups(args.download, args.output) else 0


def write_groups(downloads: Sequence[tuple[str, str]], output: pathlib.Path) -> int:
  """Compares the scans of several downloads and writes which are of one patient.

  Args:
    downloads: (source, or 'NAME:SOURCE', and folder) of each.
    output: JSON file, for `prepare --groups`.

  Returns:
    How many scans could not be read; each is told.

  Raises:
    SourceError: if a folder holds no scans of its source.
    UserError: if two cases of a source have one name, or the file cannot be written.
  """
  # Slow to import.
  from input_pipeline.dedupe.fingerprint import find_groups, fingerprint
  from input_pipeline.dedupe.fingerprint_store import FingerprintStore

  cases, known = [], []
  for called, folder in downloads:
    name, _, source = called.rpartition(':')
    of_source, notes = sources.get_source(source).listed(folder)
    of_source = [dataclasses.replace(case, source=name or case.source) for case in of_source]
    cases += of_source
    known += patient_groups.declared(of_source)
    remarks.show(notes)
  _check_names(cases, downloads)
  with errors.writing(output):  # before the work, not after it
    output.parent.mkdir(parents=True, exist_ok=True)
    text_files.check_replaceable(output)
  prints = FingerprintStore()
  unread = []
  for case in progress.bar(cases, desc='fingerprints', unit='case'):
    try:
      scan = case.load()
      prints.add(case.key, fingerprint(scan.image, scan.geometry.spacing))
    except Exception as error:  # whatever is wrong with one case must not cost the others
      print(f'skipped {case.source} {case.name}: {errors.reason(error)}', file=sys.stderr)
      unread.append(case.key)
  splits = {case.key: case.split for case in cases}
  groups = [
    {
      'split': max((splits[key] for key in keys), key=patient_groups.HELD_OUT.index),
      'members': keys,
    }
    for keys in patient_groups.join([*find_groups(prints), *known])
  ]
  patient_groups.write(output, groups, cases, unread)
  number = sum(len(group['members']) for group in groups)
  print(f'{output}: {len(groups)} groups with {number} of {len(cases)} scans')
  return len(unread)


def _check_names(cases: Sequence[sources.Case], downloads: Sequence[tuple[str, str]]) -> None:
  """UserError if two cases of a source have one name, with what tells two downloads apart."""
  try:
    identity.check_names(cases)
  except errors.UserError as error:
    twice = [called for called, _ in downloads if [c for c, _ in downloads].count(called) > 1]
    if not twice:
      raise
    raise errors.UserError(
      f'{error}; where these are two downloads, give each a name, as --download=NAME:'
      f'{twice[0].rpartition(":")[2]}=FOLDER, and prepare it with --name=NAME'
    ) from error
