#!/usr/bin/env python3
"""A `gcloud` of a make-believe cloud: notes each call, and runs what ssh is given to run.

The folder CLOUD holds `plan.json` and what came of it:
  plan: {"workers": of a node, "codes": exit codes of the runs in turn, "seconds": each takes,
    "deaf_for": seconds until one heeds SIGTERM (0),
    "events": [[command line it is part of, how many calls later, what]]}, where what is
    "preempt" (the TPU is gone), "preempt 4" (its next four looks still show SUSPENDING),
    "deaf" (no worker answers that call), "mute 1" (worker 1 does not),
    "reboot" (all processes end without a word), "reboot 0" (those of worker 0 do) or "offline"
    (gcloud itself reaches nobody).
  calls.jsonl: the arguments of each call; NODE/wN: home folders of the workers.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

CLOUD = pathlib.Path(os.environ['CLOUD'])
# What a worker has on its PATH: a pip-less python3 never runs, uv makes a .venv whose python notes
# its arguments and ends as planned.
UV = """#!/bin/bash
echo "$*" >>"$HOME/uv"
[[ $1 == venv ]] || exit 0
mkdir -p .venv/bin
cp "$CLOUD/python" .venv/bin/python
"""
PYTHON = r"""#!/usr/bin/env python3
import json, os, pathlib, signal, sys, time
home, plan = pathlib.Path(os.environ['HOME']), json.loads(
  pathlib.Path(os.environ['CLOUD'], 'plan.json').read_text())
starts = home.parent.parent / f'starts-{home.parent.name}-{home.name}'
before = len(starts.read_text().splitlines()) if starts.exists() else 0
with starts.open('a') as out:
  out.write(json.dumps([sys.argv[1:], os.environ.get('JAX_PLATFORMS'),
                        os.environ.get('MOME_CACHE')]) + '\n')
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(plan.get('deaf_for', 0)), os._exit(75)))
code = plan['codes'][min(before, len(plan['codes']) - 1)]
if isinstance(code, list):
  code = code[int(home.name[1:])]
print('step 1 of 2', flush=True)
time.sleep(plan['seconds'] if code != 'long' else 60)
sys.exit(code)
"""


def main(words):
  with (CLOUD / 'calls.jsonl').open('a') as out:
    out.write(json.dumps(words) + '\n')
  plan = json.loads((CLOUD / 'plan.json').read_text())
  what = event(plan, ' '.join(words))
  if what == 'offline':
    sys.exit('ERROR: (gcloud) There was a problem reaching the server.')
  if what and what.startswith('preempt'):
    end_processes()
    looks = int(what.removeprefix('preempt') or 0)
    (CLOUD / 'state').write_text(f'SUSPENDING {looks}' if looks else 'SUSPENDED')
    for node in CLOUD.glob('node-*'):
      shutil.rmtree(node)
  if what and what.startswith('reboot'):
    end_processes(what.removeprefix('reboot').strip())
  group, verb = words[2:4]
  run = {'queued-resources': queued, 'tpu-vm': vm}[group]
  return run(verb, words[4:], plan, what or '')


def event(plan, line):
  for entry in plan['events']:
    if entry[0] in line:
      entry[1] -= 1
      if entry[1] == 0:
        plan['events'].remove(entry)
      remember(plan)
      if entry[1] == 0:
        return entry[2]
  return None


def remember(plan):
  """Whole at every moment: the script calls for all slices at once."""
  part = CLOUD / f'plan-{os.getpid()}.part'
  part.write_text(json.dumps(plan))
  part.replace(CLOUD / 'plan.json')


def queued(verb, words, plan, what):
  state = CLOUD / 'state'
  name = words[0]
  flags = dict(word.partition('=')[::2] for word in words[1:])
  if verb == 'create':
    if state.exists():
      sys.exit('ERROR: ALREADY_EXISTS')
    install()
    names = [flags['--node-id']] if '--node-id' in flags else [
      f'{flags["--node-prefix"]}-{i}' for i in range(int(flags['--node-count']))]  # fmt: skip
    for node in names:
      for worker in range(plan['workers']):
        (CLOUD / f'node-{node}' / f'w{worker}').mkdir(parents=True)
    state.write_text('WAITING_FOR_RESOURCES')
  elif not state.exists():
    sys.exit(f'ERROR: (gcloud) NOT_FOUND: {name}')
  elif verb == 'describe':
    now, _, looks = state.read_text().partition(' ')
    print(now)
    if now == 'WAITING_FOR_RESOURCES':
      state.write_text('ACTIVE')
    if now == 'SUSPENDING':
      state.write_text('SUSPENDED' if looks == '1' else f'SUSPENDING {int(looks) - 1}')
  elif verb == 'delete':
    assert '--force' in flags and '--quiet' in flags
    end_processes()
    state.unlink()
    for node in CLOUD.glob('node-*'):
      shutil.rmtree(node)


def vm(verb, words, plan, what):
  node = CLOUD / f'node-{words[1 if verb == "scp" else 0].partition(":")[0]}'
  if not node.exists():
    sys.exit('ERROR: (gcloud) NOT_FOUND')
  workers = sorted(node.iterdir())
  flags = dict(word.partition('=')[::2] for word in words)
  if verb == 'describe':
    print(len(workers))
  elif verb == 'scp':
    for worker in workers:
      shutil.copy(words[0], worker)
  elif verb == 'ssh':
    assert flags['--worker'] == 'all'
    codes = [
      255 if what == 'deaf' or what == f'mute {i}' else ssh(worker, flags['--command'])
      for i, worker in enumerate(workers)
    ]
    return max(codes)


def ssh(home, command):
  starts = CLOUD / f'starts-{home.parent.name}-{home.name}'
  noted = lambda: len(starts.read_text().splitlines()) if starts.exists() else 0
  before = noted()
  code = subprocess.run(
    ['bash', '-c', command],
    cwd=home,
    env={'HOME': str(home), 'CLOUD': str(CLOUD), 'PATH': f'{CLOUD / "tools"}:{os.environ["PATH"]}'},
    stdin=subprocess.DEVNULL,
  ).returncode
  end = time.monotonic() + 20
  # A run that ends before it has noted its start would leave its exit code to the next one.
  while code == 0 and 'tpu_worker.sh start' in command and noted() == before:
    if time.monotonic() > end:
      sys.exit(f'{home}: nothing was started')
    time.sleep(0.01)
  return code


def install():
  """Puts what workers have on their PATH into the cloud's folder."""
  for path, text in ((CLOUD / 'tools/uv', UV), (CLOUD / 'python', PYTHON)):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def end_processes(worker=''):
  """Ends what workers run, or one of each node, as power that goes off does."""
  homes = re.compile(rf'\0HOME={re.escape(str(CLOUD))}/node-[^/]*/w{worker or "."}\0'.encode())
  for path in pathlib.Path('/proc').glob('[0-9]*/environ'):
    try:
      if homes.search(b'\0' + path.read_bytes()):
        os.kill(int(path.parent.name), signal.SIGKILL)
    except (OSError, ProcessLookupError):
      pass


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
