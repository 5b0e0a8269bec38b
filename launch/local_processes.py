"""Runs a command as several processes of one job on this machine.

python launch/local_processes.py -n 2 -- python -m mome_jax.main --config=... --workdir=DIR

The processes find each other through the environment (see `mome_jax/training/multihost.py`).
If one fails, the others are ended and its exit code is returned; if all exit with 75, because they
were preempted and have saved, they are started again.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time

from plain_parser import Parser  # beside this file

# As in mome_jax/training/multihost.py; that is not imported: any Python runs this file.
PREEMPTED = 75


def main(argv: list[str] | None = None) -> int:
  """Returns the exit code of the job."""
  arguments = _parse(argv)
  asked = []
  signal.signal(signal.SIGTERM, lambda *_: asked.append(signal.SIGTERM))
  signal.signal(signal.SIGINT, lambda *_: asked.append(signal.SIGINT))
  for attempt in range(arguments.restarts + 1):
    if attempt:
      print(f'preempted, restart {attempt} of {arguments.restarts}', file=sys.stderr, flush=True)
    code = _run(arguments, asked)
    if code != PREEMPTED or asked:
      break
  return code


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = Parser(__doc__.split('\n')[0])
  add = parser.add_argument
  add('-n', '--processes', type=int, required=True, help='how many')
  add('--devices', type=int, help='virtual CPU devices of each; without it, what JAX finds')
  add('--port', type=int, help='of process 0; without it, a free one')
  add('--grace', type=float, default=40, help='seconds that the others get to end by themselves')
  add('--restarts', type=int, default=3, help='after preemptions')
  add('command', nargs='+', help='after --')
  arguments = parser.parse_args(argv)
  if arguments.processes < 1:
    parser.error(f'-n {arguments.processes}: expected at least 1')
  if arguments.devices is not None and arguments.devices < 1:
    parser.error(f'--devices {arguments.devices}: expected at least 1')
  return arguments


def _run(arguments: argparse.Namespace, asked: list[int]) -> int:
  """One start of all processes; `asked` collects the signals that the launcher got."""
  port = arguments.port or _free_port()
  processes = [_start(arguments, port, number) for number in range(arguments.processes)]
  forwarded, failed, deadline = 0, [], None
  while any(process.poll() is None for process in processes):
    while forwarded < len(asked):
      for process in processes:
        process.send_signal(asked[forwarded])
      forwarded += 1
    _report_failed(processes, failed, arguments.grace)
    if failed and deadline is None:
      deadline = time.monotonic() + arguments.grace
    if deadline is not None and time.monotonic() > deadline:
      for process in processes:
        process.kill()
      break
    time.sleep(0.1)
  else:
    _report_failed(processes, failed, arguments.grace)
  codes = [process.wait() for process in processes]
  if failed:
    # One that a signal ended comes first, even if it was seen later: the others end because it is
    # gone, and the system may take longer to clear it away than they take to notice.
    code = next((codes[n] for n in failed if codes[n] < 0), codes[failed[0]])
    return 128 - code if code < 0 else code
  return next((code for code in codes if code), 0)


def _report_failed(processes: list[subprocess.Popen], failed: list[int], grace: float) -> None:
  """Appends to `failed` the numbers of the processes that have failed since, with a message."""
  for number, process in enumerate(processes):
    if number not in failed and process.poll() not in (None, 0, PREEMPTED):
      failed.append(number)
      print(
        f'process {number} of {len(processes)} ended with {process.returncode}; '
        f'the others have {grace:g} s',
        file=sys.stderr,
        flush=True,
      )


def _start(arguments: argparse.Namespace, port: int, number: int) -> subprocess.Popen:
  environment = {
    **os.environ,
    'MOME_DISTRIBUTED': '1',
    'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
    'JAX_NUM_PROCESSES': str(arguments.processes),
    'JAX_PROCESS_ID': str(number),
  }
  if arguments.devices:
    devices = str(arguments.devices)
    environment |= {
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': devices,
      'MOME_DEVICES': devices,
    }
  try:
    return subprocess.Popen(arguments.command, env=environment)
  except OSError as error:
    sys.exit(
      f'error: {arguments.command[0]}: cannot be run ({error.strerror}); correct the command'
    )


def _free_port() -> int:
  with socket.socket() as listener:
    listener.bind(('localhost', 0))
    return listener.getsockname()[1]


if __name__ == '__main__':
  sys.exit(main())
