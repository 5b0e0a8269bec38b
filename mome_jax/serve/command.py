r"""A local web page to type prompts into.

  python -m mome_jax.serve --open
  python -m mome_jax.serve --checkpoint MODEL --input FOLDER --port 8000

Prints one address, which only programs of this machine can reach and which holds a random token;
whoever has the address can see the scans. Drop a NIfTI file, a DICOM .zip or a DICOM folder on the
page, or choose a scan of --input, type prompts and press Enter. Scans that were sent and all
results are temporary files, which are removed when the server ends; nothing leaves the machine.
Control-C ends it. The JSON API is described by api/openapi.json behind the address.
"""

import argparse
import contextlib
import importlib.util
import logging
import math
import os
import pathlib
import secrets
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from input_pipeline import errors, remarks
from input_pipeline.cli import Parser, at_least, dashed
from input_pipeline.files.buckets import NO_DISK, is_in_bucket
from mome_jax import shipped
from mome_jax.errors import UserError
from mome_jax.inference import postprocess
from mome_jax.predict import staging
from mome_jax.predict.request import FAST_OVERLAP, Request

if TYPE_CHECKING:
  from mome_jax.serve import app, guard

_HOST = '127.0.0.1'
_HTTP, _LAST_PORT = 80, 65535
_NEEDED = 'starlette', 'uvicorn'
_SECONDS = 3  # that open connections have to end


class ServeError(UserError):
  """The server cannot start; the message says why."""


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(prog='python -m mome_jax.serve', description=__doc__, allow_abbrev=False)
  parser.add_argument(
    '--checkpoint',
    nargs='+',
    default=[shipped.MODEL],
    metavar='MODEL',
    help='as for predict; default: shipped, the model that comes with the package',
  )
  parser.add_argument('--input', metavar='FOLDER', help='scans to choose from, as for predict')
  parser.add_argument('--port', type=_port, default=0, help='default 0: any that is free')
  parser.add_argument('--open', action='store_true', help='open the page in the browser')
  parser.add_argument(
    '--max-upload',
    type=float,
    default=4.0,
    metavar='GB',
    help='the largest scan that is taken, packed or not; default %(default)s',
  )
  parser.add_argument(
    '--keep-scans',
    type=at_least(1),
    default=4,
    metavar='N',
    help='scans that are open at a time; the oldest goes for a new one; default %(default)s',
  )
  parser.add_argument(
    '--keep-features',
    type=float,
    default=4.0,
    metavar='GB',
    help='memory for what the backbone saw, which later prompts on a scan use; default %(default)s',
  )
  parser.add_argument(
    '--text-model', help='folder of the text encoder of a model with frozen text, for new prompts'
  )
  parser.add_argument('--device', help='as for predict')
  parser.add_argument(
    '--fast', action='store_true', help=f'windows overlap by {FAST_OVERLAP}, on the same grid'
  )
  parser.add_argument(
    '--tta', action='store_true', default=None, help='average with the mirror image'
  )
  parser.add_argument('--postprocess', metavar='RULES', help='as for predict')
  parser.add_argument('--keep-absent', action='store_true', help='as for predict')
  return parser


def _port(text: str) -> int:
  number = at_least(0)(text)
  if number > _LAST_PORT:
    raise argparse.ArgumentTypeError(f'{text!r}: expected a number up to {_LAST_PORT}')
  return number


@errors.command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = make_parser().parse_args(dashed(argv))
  lacking = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
  if lacking:
    raise ServeError(f'{" and ".join(lacking)} not installed; {errors.install(lacking[0])}')
  _check(args)
  with _listening(args.port) as listener, _temporary() as folder:
    ended = _run(args, listener, folder)
  print('stopped; temporary files are removed', file=sys.stderr)
  if not ended:  # what still compiles would abort the process where the interpreter ends under it
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
  return 0


def _check(args: argparse.Namespace) -> None:
  if not 0 < args.max_upload < math.inf:
    raise ServeError(f'--max-upload {args.max_upload:g}: must be above 0 and finite; give GB')
  if not 0 <= args.keep_features < math.inf:
    raise ServeError(
      f'--keep-features {args.keep_features:g}: must be 0 or more and finite; give GB'
    )
  if args.input is not None and is_in_bucket(args.input):
    raise ServeError(f'{args.input} {NO_DISK}')
  if args.input is not None and not os.path.isdir(args.input):
    raise ServeError(f'{args.input}: no such folder; correct --input')


def _run(args: argparse.Namespace, listener: socket.socket, folder: pathlib.Path) -> bool:
  """Serves until it is stopped; whether all that computed has ended."""
  # What computes is imported from here on, so that help and mistakes come at once.
  from mome_jax.serve import app, guard

  desk = _desk(args, folder)
  token, port = secrets.token_urlsafe(24), listener.getsockname()[1]
  address = f'http://{_HOST}:{port}/{token}/'

  def started() -> None:
    print(address, flush=True)
    if args.open:
      webbrowser.open(redirect(folder, address))

  guarded = guard.Guard(app.make_app(desk, started), token, hosts(port))
  try:
    with contextlib.suppress(KeyboardInterrupt):  # the usual end
      _serve(guarded, listener, desk)
  finally:
    ended = desk.line.close()
  return ended


def hosts(port: int) -> list[str]:
  """What the server is asked for as; browsers leave out the port of HTTP."""
  ends = [f':{port}', *([''] if port == _HTTP else [])]
  return [f'{name}{end}' for name in (_HOST, 'localhost') for end in ends]


def _desk(args: argparse.Namespace, folder: pathlib.Path) -> 'app.Desk':
  """The model, the scans of --input, and what is open and asked for."""
  from mome_jax.predict import find_scans, prompted_model
  from mome_jax.runtime import process
  from mome_jax.serve import answers, app, compute, scans

  offered, notes = find_scans.find_scans([os.path.abspath(args.input)]) if args.input else ([], [])
  remarks.show(notes)
  process.prepare()
  request = Request(
    (),
    fast=args.fast,
    rules=None if args.postprocess is None else postprocess.parse(args.postprocess),
    tta=args.tta,
    keep_absent=args.keep_absent,
  )
  model = prompted_model.load(args.checkpoint, text_model=args.text_model, device=args.device)
  answerer = answers.Answerer(model, request, int(args.keep_features * 1e9))
  line = compute.Line()
  line.add(answerer.warm_up, purpose='getting ready')
  desk = app.Desk(
    answerer,
    scans.Scans(folder, args.keep_scans, lambda scan: desk.close(scan)),
    line,
    {scan.name: scan for scan in offered},
    int(args.max_upload * 1e9),
  )
  return desk


def _serve(guarded: 'guard.Guard', listener: socket.socket, desk: 'app.Desk') -> None:
  """Answers until Control-C."""
  import uvicorn

  config = uvicorn.Config(
    guarded,
    log_level=logging.WARNING,
    access_log=False,  # addresses hold the token
    ws='none',
    timeout_graceful_shutdown=_SECONDS,
    server_header=False,
  )

  class Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
      desk.stopping.set()  # streams of progress end, and so do their connections
      await super().shutdown(sockets)

  Server(config).run(sockets=[listener])


def redirect(folder: pathlib.Path, address: str) -> str:
  """The address of a page in a folder of this user's that leads to another one.

  All users of a machine can read what a browser is started with, and the token is none of theirs.
  """
  path = folder / 'open.html'
  with open(
    os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), 'w', encoding='utf-8'
  ) as file:
    file.write(
      f'<!DOCTYPE html>\n<meta http-equiv="refresh" content="0; url={address}">\n'
      f'<title>mome serve</title>\n<a href="{address}">mome serve</a>\n'
    )
  return path.as_uri()


@contextlib.contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
  with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      listener.bind((_HOST, port))
      listener.listen()  # whoever reads the address may ask at once
    except OSError as error:
      raise ServeError(f'--port {port}: {error.strerror}; choose another, or 0 for any') from error
    yield listener


@contextlib.contextmanager
def _temporary() -> Iterator[pathlib.Path]:
  """A folder that only this user can read; what a killed server has left is removed first."""
  place = pathlib.Path(tempfile.gettempdir(), f'mome-serve-{os.getuid()}')
  place.mkdir(mode=0o700, exist_ok=True)
  if place.stat().st_uid != os.getuid() or place.is_symlink():
    raise ServeError(f'{place}: belongs to another user; set TMPDIR to a place of your own')
  place.chmod(0o700)
  staging.sweep(place)
  with staging.scratch(place) as folder:
    yield folder
