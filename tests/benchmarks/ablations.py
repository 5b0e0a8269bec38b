"""Trains MoME and its ablations on OpenKBP and puts them into one table, each against MoME.

PYTHONPATH=. python tests/benchmarks/ablations.py --manual_dir=DIR --output=runs/ablations

Every variant is `configs/openkbp_cpu.py` with the settings below, trained for the same number of
steps with the same seed and scored on the validation patients. A run that was ended resumes, one
that is done is not repeated; `--only` names some. Prepares OpenKBP with --manual_dir. The
Markdown table is printed and written to table.md.
"""

import argparse
import ast
import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import flax
import numpy as np

from input_pipeline import bricks
from mome_jax import checkpoint
from mome_jax.configs import openkbp_cpu
from mome_jax.evaluate import compare, score_files
from mome_jax.text.prompts import default_prompts
from mome_jax.text.vectors import TextVectors

REFERENCE = 'mome'
VARIANTS = {
  REFERENCE: ('MoME: all scales, router reads text and vision', {}),
  'finest': ('baseline: the finest decoder layer alone', {'model.experts': 'finest'}),
  'uniform': ('no router: all scales weigh the same', {'model.router_inputs': 'uniform'}),
  'text': ('router reads the text only', {'model.router_inputs': 'text'}),
  'vision': ('router reads the features only', {'model.router_inputs': 'vision'}),
  'top_2': ('the best two scales of each voxel', {'model.top_k': 2}),
  'sparse_8': ('banks of 8 sparse experts, k = 2', {'model.bank.scales': '(1,2)'}),
  'sparse_32': (
    'banks of 32 sparse experts, k = 2',
    {
      'model.bank.scales': '(1,2)',
      'model.bank.num_experts': 32,
      'model.bank.executor': 'capacity',
    },
  ),
  'one_hot': (
    'one-hot vectors in place of the text encoder',
    {'text.mode': 'frozen', 'text.vectors': 'one_hot.npz'},
  ),
  'parts': (
    'a third of the labels: three datasets of few organs each',
    {'data.sources': "('openkbp_parts',)"},
  ),
  'parts_finest': (
    'baseline with a third of the labels',
    {'data.sources': "('openkbp_parts',)", 'model.experts': 'finest'},
  ),
  'seed': ('MoME with another seed', {'seed': 1}),
  'finest_seed': ('baseline with another seed', {'seed': 1, 'model.experts': 'finest'}),
}


def prepare(args, source: str, **options) -> None:
  """A source on the grid of the config; options of `input_pipeline.prepare`.

  With --manual_dir it follows the download; without, it must be there and prepared so.
  """
  spacing = openkbp_cpu.get_config().data.spacing
  name = options.get('name', source)
  current = bricks.read_settings(args.data_dir, name)
  if args.manual_dir is None and current is not None:
    expected = {'source': source, 'version': bricks.VERSION, 'spacing': list(spacing), 'brick': 32}
    if current['settings'] != expected | {'limit': options.get('cases')}:
      raise SystemExit(
        f'{args.data_dir / name}: prepared otherwise, {current["settings"]}; remove it and pass '
        '--manual_dir'
      )
    return
  options |= {'source': source, 'brick': 32, 'data_dir': args.data_dir}
  options |= {'spacing': ','.join(f'{mm:g}' for mm in spacing), 'manual_dir': args.manual_dir}
  command = [sys.executable, '-m', 'input_pipeline.prepare']
  command += [f'--{k}={v}' for k, v in options.items() if v is not None]
  subprocess.run(command, check=True)


def is_done(config, workdir: pathlib.Path) -> bool:
  """Whether a run is trained with this config and scored on what is prepared now.

  Raises:
    SystemExit: if another config's scores are there, or those of other data.
  """
  summary = workdir / 'evaluation' / score_files.SUMMARY
  if not summary.is_file():
    return False
  was, now = (_flat(c) for c in (checkpoint.load_config(workdir), config))
  differ = sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k))
  newer = [
    source
    for source in config.data.sources
    if (pathlib.Path(config.data_dir) / source / bricks.SETTINGS).stat().st_mtime
    > summary.stat().st_mtime
  ]
  if differ or newer:
    what = [*(f'other {key}' for key in differ), *(f'earlier data of {name}' for name in newer)]
    raise SystemExit(f'{workdir} is a run with {", ".join(what)}; remove it')
  return True


def _flat(config) -> dict:
  """Values of a config by their dotted names, without those that training fills in."""
  values = json.loads(config.to_json_best_effort())
  flat = flax.traverse_util.flatten_dict(values, sep='.')
  return {key: value for key, value in flat.items() if key not in ('new_classes', 'text.d_model')}


def train(name: str, args) -> None:
  """Trains and scores one variant in `OUTPUT/NAME`, unless that is done."""
  workdir = args.output / name
  settings = dict(VARIANTS[name][1])
  if 'text.vectors' in settings:
    settings['text.vectors'] = args.output / settings['text.vectors']
    write_one_hot(settings['text.vectors'], openkbp_cpu.get_config().classes)
  settings |= {'train.steps': args.steps, 'data_dir': args.data_dir, 'evaluation.pictures': 0}
  if is_done(with_settings(settings), workdir):
    return
  config = pathlib.Path(openkbp_cpu.__file__)
  command = [sys.executable, '-m', 'mome_jax.main', f'--config={config}', f'--workdir={workdir}']
  command += [f'--config.{key}={value}' for key, value in settings.items()]
  print(f'{name}: {" ".join(map(str, command[1:]))}', flush=True)
  subprocess.run(command, check=True)


def with_settings(settings: dict):
  """The config that these options of the command line make."""
  config = openkbp_cpu.get_config()
  for key, value in settings.items():
    text = str(value)
    value = ast.literal_eval(text) if text.startswith('(') else value
    value = str(value) if isinstance(value, pathlib.Path) else value
    config.update_from_flattened_dict({key: value})
  return config


def write_one_hot(path: pathlib.Path, classes: Sequence[str]) -> None:
  """A vector of its own for each class, which says nothing of what the class is."""
  prompts = default_prompts(classes)
  vectors = np.eye(len(prompts), dtype=np.float32)
  TextVectors(tuple(prompts), vectors, {'model': 'one-hot'}).save(path)


def table(args) -> str:
  """Markdown of all that are done: scores, and paired differences to the reference."""
  runs = {}
  for name, (text, _) in VARIANTS.items():
    folder = args.output / name / 'evaluation'
    if summary := score_files.read_summary(folder):
      if summary['step'] != args.steps:
        raise SystemExit(
          f'{folder.parent} has {summary["step"]} steps, not {args.steps}; remove it'
        )
      runs[text] = score_files.read(folder)
  return f'{args.steps} steps each. {compare.overview(runs)}'


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--manual_dir', help='OpenKBP, to prepare it')
  parser.add_argument('--data_dir', type=pathlib.Path, default=pathlib.Path('runs/data'))
  parser.add_argument('--output', type=pathlib.Path, default=pathlib.Path('runs/ablations'))
  parser.add_argument('--steps', type=int, default=1000)
  parser.add_argument('--only', nargs='+', choices=VARIANTS, default=list(VARIANTS))
  args = parser.parse_args()
  args.output.mkdir(parents=True, exist_ok=True)
  for source in ('openkbp', 'openkbp_parts'):
    prepare(args, source)
  for name in dict.fromkeys([REFERENCE, *args.only]):
    train(name, args)
  text = table(args)
  (args.output / 'table.md').write_text(text)
  print(text)


if __name__ == '__main__':
  main()
