"""Time of each stage and peak memory of predicting a scan of clinical size, for several K.

PYTHONPATH=. python tests/benchmarks/large_scan.py --checkpoint=DIR --scan=CT.nii.gz [--report]

The scan is upsampled to --shape; each K runs in a process of its own, with built-in names first and
then free text; K = 0 asks for nothing, so that the classes of the model are made. Programs that are
not in the compilation cache yet count as 'network'.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from input_pipeline.anatomy import TEMPLATE
from input_pipeline.ct import resample, volume
from mome_jax import checkpoint

STAGES = ('read', 'resample', 'network', 'blend', 'postprocess', 'write')
PROGRAM = """
import sys
from mome_jax import predict
code = predict.main()
peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))
print('peak', peak.split()[1], file=sys.stderr)
sys.exit(code)
"""


def upsample(source: str, shape: list[int], path: pathlib.Path) -> tuple[float, float, float]:
  """Writes the scan with another number of voxels, int16; returns its spacing in mm."""
  scan = volume.read_image(source)
  target = scan.spacing * scan.array.shape / np.array(shape)
  array = resample.resample(scan.array, scan.spacing, target, order=1, target_shape=shape)
  geometry = volume.to_canonical(array, np.diag([*target, 1.0])).geometry
  volume.write_nifti(path, np.rint(array), geometry, np.int16)
  return tuple(target)


def prompts(count: int) -> list[str]:
  """Names of the template, then free text."""
  names = [structure.name for structure in TEMPLATE.structures][:count]
  return names + [f'structure number {i}' for i in range(count - len(names))]


def run(checkpoint_path: str, scan: pathlib.Path, count: int, report: bool):
  """Predicts with K classes in a fresh process; returns seconds by stage and peak bytes."""
  with tempfile.TemporaryDirectory(dir=scan.parent) as output:
    asked = pathlib.Path(output, 'prompts.txt')
    asked.write_text('\n'.join(prompts(count)))
    named = ['--prompts-file', asked] if count else []
    words = ['--checkpoint', checkpoint_path, '--input', scan, '--output', output,
             *named, '--force', '--quiet', '--json']  # fmt: skip
    done = subprocess.run(
      [sys.executable, '-c', PROGRAM, *words, *(['--report'] if report else [])],
      check=True,
      capture_output=True,
      text=True,
    )
    files = {path.name: path.stat().st_size for path in pathlib.Path(output).iterdir()}
  return json.loads(done.stdout)['timings'], 1024 * int(done.stderr.split()[-1]), files


def main() -> None:
  """Prints a Markdown table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--checkpoint', required=True)
  parser.add_argument('--scan', required=True)
  parser.add_argument('--shape', type=int, nargs=3, default=[512, 512, 280])
  parser.add_argument('--classes', type=int, nargs='+', default=[0, 1, 8, 32, 128])
  parser.add_argument('--report', action='store_true', help='also write the page')
  a = parser.parse_args()
  config = checkpoint.load_config(a.checkpoint)
  with tempfile.TemporaryDirectory() as folder:
    scan = pathlib.Path(folder, 'scan.nii.gz')
    spacing = upsample(a.scan, a.shape, scan)
    grid = resample.output_shape(a.shape, spacing, config.data.spacing)
    window = tuple(config.evaluation.window)
    print(
      f'{a.shape} voxels of {np.round(spacing, 2)} mm, {grid} for the network, window {window}\n'
    )
    print(f'| K | {" | ".join(STAGES)} | total s | peak GB | one slab of K maps, GB |')
    print('|--:' * (len(STAGES) + 4) + '|')
    for count in a.classes:
      seconds, peak, files = run(a.checkpoint, scan, count, a.report)
      slab = 4 * count * window[0] * max(grid[1], window[1]) * max(grid[2], window[2])
      cells = [f'{seconds.get(stage, 0):.1f}' for stage in STAGES]
      cells += [f'{sum(seconds.values()):.1f}', f'{peak / 1e9:.2f}', f'{slab / 1e9:.2f}']
      print(f'| {count} | {" | ".join(cells)} |', flush=True)


if __name__ == '__main__':
  main()
