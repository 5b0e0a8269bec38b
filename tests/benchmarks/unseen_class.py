"""What MoME makes of classes it never saw: by prompt alone, and after fine-tuning on a few scans.

PYTHONPATH=. python tests/benchmarks/unseen_class.py --manual_dir=DIR --output=runs/unseen

Trains `configs/openkbp_cpu.py` without some classes and scores it with them among the prompts. Goes
on from there with `configs/finetune.py` on the first training patients alone, whose old and new
classes are labelled as in the cohort. Every run is scored on all validation patients. The Markdown
table is printed and written to table.md; a run that is done is not repeated.
"""

import argparse
import pathlib
import statistics

from etils import epath

from mome_jax import evaluate
from mome_jax.configs import openkbp_cpu
from mome_jax.evaluate import metrics, score_files, tables
from mome_jax.training import config_flag, loop
from tests.benchmarks import ablations


def run(config, workdir: pathlib.Path, args) -> list[dict]:
  """Rows of a run for all classes and validation patients; trains and scores it where needed."""
  config.data_dir = str(args.data_dir)
  if not ablations.is_done(config, workdir):
    config = loop.train(config, epath.Path(workdir))
    config.classes = openkbp_cpu.get_config().classes
    config.data.sources = ('openkbp',)
    config.evaluation.pictures = 0
    evaluate.evaluate(config, epath.Path(workdir))
  return score_files.read(workdir)


def run_all(args) -> dict[str, list[dict]]:
  """Rows of every run by its name in the table."""
  sources = {scans: f'openkbp_first_{scans}' for scans in args.scans}
  ablations.prepare(args, 'openkbp')
  for scans, source in sources.items():
    ablations.prepare(args, 'openkbp', name=source, cases=scans)
  config = openkbp_cpu.get_config()
  classes = config.classes
  config.classes = tuple(name for name in classes if name not in args.unseen)
  config.train.steps = args.steps
  base = args.output / 'base'
  rows = {'by prompt alone': run(config, base, args)}
  for scans, source in sources.items():
    config = config_flag.load(f'finetune:{base}')
    config.classes, config.data.sources = classes, (source,)
    config.train.steps = args.tuning_steps
    rows[f'fine-tuned on {scans} scans'] = run(config, args.output / source, args)
  return rows


def table(runs: dict[str, list[dict]], unseen: list[str]) -> str:
  """Mean Dice of the old classes and Dice of each unseen one, one line a run."""
  lines = []
  for name, rows in runs.items():
    scores = metrics.summarize(rows)['classes']
    old = statistics.mean(row['dice'] for key, row in scores.items() if key not in unseen)
    new = (tables.percent(scores[key]['dice'], scores[key]['dice_interval']) for key in unseen)
    lines.append((name, tables.percent(old), *new))
  return tables.markdown('Dice %', ('run', 'old classes', *unseen), lines)


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--manual_dir', help='OpenKBP, to prepare it')
  parser.add_argument('--data_dir', type=pathlib.Path, default=pathlib.Path('runs/data'))
  parser.add_argument('--output', type=pathlib.Path, default=pathlib.Path('runs/unseen'))
  classes = openkbp_cpu.get_config().classes
  parser.add_argument('--unseen', nargs='+', choices=classes, default=['left parotid', 'mandible'])
  parser.add_argument('--scans', nargs='*', type=int, default=[5, 20])
  parser.add_argument('--steps', type=int, default=1000, help='of the first training')
  parser.add_argument('--tuning_steps', type=int, default=300)
  args = parser.parse_args()
  text = table(run_all(args), args.unseen)
  (args.output / 'table.md').write_text(text)
  print(text)


if __name__ == '__main__':
  main()
