r"""A DICOM node: CT series come by C-STORE, their segmentations go back by C-STORE.

  python -m mome_jax.dicom_node --config node.toml

A config file (TOML):

  ae_title = "MOME"              # what senders call
  port = 11112
  host = "127.0.0.1"             # listened on; "0.0.0.0" to be reached from other machines
  callers = ["ARCHIVE"]          # AE titles that may send; without: everybody
  prompts = "mandible, larynx"   # without: all but the experimental classes
  results = ["dicom_seg", "rtstruct"]
  wait = 10                      # seconds without a further image: the series is whole

  [[destinations]]               # where results go
  ae_title = "ARCHIVE"
  host = "127.0.0.1"
  port = 4242

and checkpoint, folder, attempts, keep; see docs/how-to/dicom-node.md. Only CT is taken. There is no
encryption: use it in a network that you trust. Not a medical device. Control-C stops it; what has
come and was not answered is gone on with at the next start.
"""

import argparse
import pathlib
import signal
import time
from collections.abc import Sequence

from input_pipeline import errors
from input_pipeline.cli import Parser, dashed


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(prog='python -m mome_jax.dicom_node', description=__doc__, allow_abbrev=False)
  parser.add_argument('--config', required=True, metavar='FILE', help='TOML, as above')
  parser.add_argument(
    '--check', action='store_true', help='read the config and the model, print both, and end'
  )
  return parser


def _tell(line: str) -> None:
  try:
    print(f'{time.strftime("%H:%M:%S")} {line}', flush=True)
  except BrokenPipeError as error:  # an OSError would be taken for one of the disk, and of a series
    raise SystemExit(128 + signal.SIGPIPE) from error


@errors.command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = make_parser().parse_args(dashed(argv))
  from mome_jax.dicom_node import node, settings
  from mome_jax.runtime import process

  told = settings.read(pathlib.Path(args.config))
  process.prepare()
  model = node.load(told)
  if args.check:
    print(told)
    return 0
  listening = node.Node(told, model, _tell)
  names = ', '.join(one.ae_title for one in told.destinations)
  _tell(f'{told.ae_title} listens on {told.host}:{listening.port}; results go to {names}')
  try:
    listening.run()
  except KeyboardInterrupt:
    listening.stopped.set()
    _tell('stopped')
  return 0
