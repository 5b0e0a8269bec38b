"""Blending and decision where the logits are, against the host's: the same scan, in turns.

PYTHONPATH=. python tests/benchmarks/on_device.py --scan=CT.nii.gz [--checkpoint=DIR] [--repeats=3]

Whole scans to masks on their own grid, compiled before; on a CPU both are memory of the host.
Prints a Markdown table with what travels, and in how many voxels the labels differ.
"""

import argparse

import numpy as np
import timing

from input_pipeline.ct import volume
from mome_jax import Predictor
from mome_jax.inference.segmenter import Segmenter
from mome_jax.inference.stage_clock import Clock
from mome_jax.text.prompts import default_prompts


def main():
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--scan', required=True)
  parser.add_argument('--checkpoint', help='default: the model of the package')
  parser.add_argument('--repeats', type=int, default=3)
  args = parser.parse_args()
  scan = volume.read_image(args.scan)
  model = Predictor(args.checkpoint) if args.checkpoint else Predictor()
  names = tuple(model.config.classes)
  settings = model.segmenter(names, default_prompts(names, model.template), rules=()).settings
  reader = model.reader(default_prompts(names, model.template))
  winner, clocks = {}, {}

  def segment(on_device: bool):
    clocks[on_device] = Clock()
    segmenter = Segmenter(reader, names, settings, model.template, on_device=on_device)
    masks = segmenter(scan.array, tuple(scan.spacing), clock=clocks[on_device])
    winner[on_device] = masks.winner

  runs = {on_device: lambda on_device=on_device: segment(on_device) for on_device in (False, True)}
  seconds = timing.median_seconds(runs, args.repeats)
  print(f'{" x ".join(map(str, scan.array.shape))} voxels, {len(names)} classes\n')
  print('| decided | scan (s) | network (s) | the rest (s) | MB to the device | MB from it |')
  print('|:--|--:|--:|--:|--:|--:|')
  for on_device, clock in clocks.items():
    stages, counts = clock.seconds(), clock.counts()
    travels = (counts[name] / 1e6 for name in ('bytes_to_device', 'bytes_from_device'))
    rest = sum(stages.values()) - stages['network']
    where = 'on the device' if on_device else 'on the host'
    print(timing.row(where, seconds[on_device], stages['network'], rest, *travels))
  differ = np.count_nonzero(winner[True] != winner[False])
  print(
    f'\nratio {seconds[True] / seconds[False]:.2f}; {differ} of {scan.array.size} voxels differ'
  )


if __name__ == '__main__':
  main()
