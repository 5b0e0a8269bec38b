"""Seconds from Enter to the masks of a first and of further prompts, through `mome serve`.

PYTHONPATH=. python tests/benchmarks/serve.py --scan CT.nii.gz --shape 512,512,280

The scan is interpolated to the shape first, in the same field of view; whoever serves is another
process, as for users. Prints a Markdown table, and the largest memory of the server.
"""

import argparse
import contextlib
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import httpx
import nibabel as nib
import numpy as np
from scipy import ndimage

PROMPTS = (
  ('a class of the model', ['mandible']),
  ('another class', ['larynx']),
  ('free text', ['tongue of the mouth']),
  ('two more free texts', ['jaw of the face', 'neck muscle']),
)


def reshaped(path: str, shape: Sequence[int], output: pathlib.Path) -> pathlib.Path:
  """Writes the scan at another shape in the same field of view."""
  image = nib.load(path)
  array = np.asarray(image.dataobj, np.float32)
  factors = np.divide(shape, array.shape)
  fine = ndimage.zoom(array, factors, order=1).astype(np.int16)
  nib.save(nib.Nifti1Image(fine, image.affine @ np.diag([*(1 / factors), 1])), output)
  return output


@contextlib.contextmanager
def server() -> Iterator[tuple[httpx.Client, int]]:
  """A client of a server of the shipped model, and its process id."""
  process = subprocess.Popen(
    [sys.executable, '-m', 'mome_jax.serve'], stdout=subprocess.PIPE, text=True
  )
  try:
    with httpx.Client(base_url=process.stdout.readline().strip(), timeout=3600) as client:
      follow(client, 1)  # it is warm
      yield client, process.pid
  finally:
    process.send_signal(signal.SIGINT)
    process.wait()


def follow(client: httpx.Client, job: int) -> None:
  """Waits for a job."""
  state = {}
  with client.stream('GET', f'api/jobs/{job}/events') as stream:
    for line in stream.iter_lines():
      state = json.loads(line[6:]) if line.startswith('data: ') else state
  assert state['state'] == 'done', state


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--scan', required=True)
  parser.add_argument('--shape', default='512,512,280')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder, server() as (client, process):
    shape = [int(n) for n in args.shape.split(',')]
    content = reshaped(args.scan, shape, pathlib.Path(folder, 'scan.nii.gz')).read_bytes()
    rows = []
    start = time.perf_counter()
    [scan] = client.post('api/scans?name=scan.nii.gz', content=content).json()['scans']
    rows.append(('open the scan', time.perf_counter() - start))
    place = f'api/scans/{scan["scan"]}'
    for what, prompts in PROMPTS:
      start = time.perf_counter()
      body = {'prompts': prompts, 'force': True}
      told = client.post(f'{place}/prompts', json=body).json()
      follow(client, told['job'])
      client.get(f'{place}/sets/{told["set"]}/view').raise_for_status()
      rows.append((f'{what} ({", ".join(prompts)})', time.perf_counter() - start))
    status = pathlib.Path(f'/proc/{process}/status').read_text()
    [memory] = [line.split()[1] for line in status.splitlines() if line.startswith('VmHWM')]
  print('| | seconds |\n|:--|--:|')
  for what, seconds in rows:
    print(f'| {what} | {seconds:.1f} |')
  print(f'\nAt most {int(memory) / 1e6:.1f} GB of memory.')


if __name__ == '__main__':
  main()
