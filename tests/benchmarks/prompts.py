"""What a prompt costs: seconds of one scan with one to two hundred prompts, and peak memory.

  PYTHONPATH=. python tests/benchmarks/prompts.py [--checkpoint MODEL] [--scan FILE]

All classes that the model was trained on run wherever one is asked for; "alone" runs it without
its rivals, which `predict` never does. Prints a Markdown table.
"""

import argparse
import resource
import time

from input_pipeline.ct import volume
from mome_jax import shipped
from mome_jax.inference.loaded_model import SHIPPED, Predictor
from mome_jax.text.prompts import default_prompts


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--checkpoint', default=SHIPPED)
  parser.add_argument('--scan', default=shipped.SCAN)
  parser.add_argument('--counts', type=int, nargs='+', default=[32, 200], help='prompts in all')
  args = parser.parse_args()
  predictor, scan = Predictor(args.checkpoint), volume.read_image(args.scan)
  trained = list(predictor.config.classes)
  texts = default_prompts(trained, predictor.template)
  cases = {'1, alone': (trained[:1], 0), f'1 to {len(trained)}, all classes': (trained, 0)}
  for count in args.counts:
    cases[f'{count}, {count - len(trained)} of them free text'] = (trained, count - len(trained))
  print('| prompts | first scan (s) | next scan (s) | s a prompt added | peak memory (GB) |')
  print('|:--|--:|--:|--:|--:|')
  base = 0.0
  for title, (names, more) in cases.items():
    free = [f'structure {n}' for n in range(more)]
    seconds = []
    for _ in range(2):
      start = time.perf_counter()
      run = predictor.segmenter(names, [*texts[: len(names)], *free], free=free)
      run(scan.array, tuple(scan.spacing))
      seconds.append(time.perf_counter() - start)
    base = base if more else seconds[1]
    each = f'{(seconds[1] - base) / more:.3f}' if more else ''
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f'| {title} | {seconds[0]:.1f} | {seconds[1]:.1f} | {each} | {peak:.2f} |', flush=True)


if __name__ == '__main__':
  main()
