"""The train step of configs, compiled for TPU chips that are not there: traffic and roofline.

JAX_EXEC_TIME_OPTIMIZATION_EFFORT=-1 PYTHONPATH=. python tests/benchmarks/tpu_step.py \
    --configs paper_unet --topologies v5e:2x2 --patches 1 2 [--json FILE]

One line a compilation, of one to ten minutes each, as soon as it is there; with --json they are
appended to a file, and what is in it already is not compiled again.
"""

import argparse
import itertools
import json
import pathlib
import subprocess
import sys

HEAD = (
  'config', 'chip', 'patches a chip', 'GB a patch', 'convolution', 'copy', 'normalisation',
  'class maps', 'other', 'TFLOP a patch', 'ms a patch, computing', 'ms a patch, moving',
  'MFU at most', 'peak GiB', 'fits', 'seconds to compile',
)  # fmt: skip


def compile_one(config: str, topology: str, patches: int) -> dict:
  """The report of one train step; see `compile_ahead.compile_config`."""
  from mome_jax.training import command_line, compile_ahead, sharding, text_start

  flags = command_line.parse(['', f'--config={config}', '--mode=compile', f'--topology={topology}'])
  devices, platform = compile_ahead.find_devices(topology)
  values = flags.config.copy_and_resolve_references()
  values.train.batch_size = patches * len(devices)
  text_start.complete(values)
  train, _ = compile_ahead.trace_train_step(values, sharding.make_mesh(values.mesh, devices))
  measured = compile_ahead.measure(
    train, platform, topology, patches=values.train.batch_size, devices=len(devices)
  )
  return {'config': config, 'topology': topology, 'compiler': compile_ahead.compiler(platform),
          'chips': len(devices), **measured}  # fmt: skip


def line(report: dict) -> str:
  """A row of the table, as of `HEAD`."""
  traffic, share = report['traffic'], report['patches_per_chip']
  roofline = report['roofline']
  cells = [
    report['config'],
    report['topology'].partition(':')[0],
    f'{share:g}',
    f'{traffic["total"] / 1e9:.1f}',
    *(f'{size / 1e9:.1f}' for size in traffic['kinds'].values()),
    f'{report["flops_per_patch"] / 1e12:.2f}',
    f'{1e3 * roofline["compute_seconds"] / share:.0f}',
    f'{1e3 * roofline["memory_seconds"] / share:.0f}',
    f'{roofline["mfu_bound"]:.0%}',
    f'{report["hbm"]["peak"] / 2**30:.1f}',
    'yes' if report['fits'] else 'no',
    f'{report["compile_seconds"]:.0f}',
  ]
  return '| ' + ' | '.join(cells) + ' |'


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--configs', nargs='+', default=['paper_unet'])
  parser.add_argument('--topologies', nargs='+', default=['v5e:2x2'])
  parser.add_argument('--patches', nargs='+', type=int, default=[1], help='patches a chip')
  parser.add_argument('--json', type=pathlib.Path, help='file of reports, one a line')
  parser.add_argument('--one', action='store_true', help=argparse.SUPPRESS)
  options = parser.parse_args()
  runs = list(itertools.product(options.configs, options.topologies, options.patches))
  if options.one:
    print(json.dumps(compile_one(*runs[0])))
    return
  reports = {}
  if options.json and options.json.exists():
    for text in options.json.read_text().splitlines():
      report = json.loads(text)
      reports[report['config'], report['topology'], int(report['patches_per_chip'])] = report
  print('| ' + ' | '.join(HEAD) + ' |')
  print('|:--|:--' + '|--:' * (len(HEAD) - 2) + '|')
  for config, topology, patches in runs:
    if (config, topology, patches) not in reports:
      # A process each: JAX is set up for one topology, and what it holds is given back.
      command = [sys.executable, __file__, '--one', '--configs', config, '--topologies', topology]
      done = subprocess.run(
        [*command, '--patches', str(patches)], stdout=subprocess.PIPE, text=True, check=False
      )
      if done.returncode:
        print(f'| {config} | {topology} | {patches} | does not compile |', flush=True)
        continue
      reports[config, topology, patches] = json.loads(done.stdout.splitlines()[-1])
      if options.json:
        with options.json.open('a') as file:
          file.write(done.stdout.splitlines()[-1] + '\n')
    print(line(reports[config, topology, patches]), flush=True)


if __name__ == '__main__':
  main()
