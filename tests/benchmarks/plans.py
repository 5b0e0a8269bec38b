"""What `mome plan` chooses for four cohorts, and how exact its memory is.

PYTHONPATH=. python tests/benchmarks/plans.py --data=../shared/data --work=/tmp/p --hours=1
PYTHONPATH=. python tests/benchmarks/plans.py --data=../shared/data --work=/tmp/p --topology=v5e:4

Phantoms as they come, OpenKBP, chests with lung tumours, and phantoms drawn at 0.7 x 0.7 x 5 mm.
"""

import argparse
import json
import pathlib
import re
import shutil
import sys

import nibabel as nib
import numpy as np

from input_pipeline.anatomy import TEMPLATE
from input_pipeline.sources.phantom import make_phantom
from mome_jax.plan import command, planning, report, target
from mome_jax.plan.cohort import read_cohort
from mome_jax.plan.experiment import Experiment

_THICK = (0.7, 0.7, 5.0)  # mm
_COLUMNS = (
  'cohort', 'spacing mm', 'planned grid', 'patch', 'batch', 'steps', 'HU windows',
  'data.foreground', 'evaluation.postprocess', 'predicted, GiB', 'compiler', 'off',
  'with libraries', 'measured', 'off',
)  # fmt: skip


def write_chests(data: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """The chests as a folder of nnU-Net: lungs and tumours, which some patients lack."""
  place = _fresh(folder / 'chests')
  for file in sorted((data / 'thorax').glob('*_seg.nii.gz')):
    name = file.name.removesuffix('_seg.nii.gz')
    shutil.copy(file.with_name(f'{name}_ct.nii.gz'), place / f'imagesTr/{name}_0000.nii.gz')
    shutil.copy(file, place / f'labelsTr/{name}.nii.gz')
  labels = {'background': 0, 'right lung': 1, 'left lung': 2, 'lung tumor': 3, 'node': 4}
  _declare(place, labels, ignored=['node'], missing_is='unlabelled')
  return place


def write_thick(folder: pathlib.Path, number: int) -> pathlib.Path:
  """Phantoms in thick slices, as a folder of nnU-Net."""
  place = _fresh(folder / 'thick')
  names = ('liver', 'spleen', 'right kidney', 'left kidney', 'liver tumor')
  labels = {'background': 0} | {name: TEMPLATE.get(name).index for name in names}
  for seed in range(number):
    image, codes, spacing = make_phantom(seed, spacing=_THICK)
    codes = np.where(np.isin(codes, list(labels.values())), codes, 0).astype(np.uint8)
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
    nib.save(nib.Nifti1Image(image, affine), place / f'imagesTr/p{seed}_0000.nii.gz')
    nib.save(nib.Nifti1Image(codes, affine), place / f'labelsTr/p{seed}.nii.gz')
  _declare(place, labels, missing_is='absent')
  return place


def _fresh(place: pathlib.Path) -> pathlib.Path:
  shutil.rmtree(place, ignore_errors=True)
  for part in ('imagesTr', 'labelsTr'):
    (place / part).mkdir(parents=True)
  return place


def _declare(place: pathlib.Path, labels: dict[str, int], **fields) -> None:
  (place / 'dataset.json').write_text(json.dumps({'labels': labels} | fields))


def plan(words: list[str]) -> tuple[str, ...]:
  """Plans, prints what the command would, and returns a row of the table without its title."""
  args = command.make_parser().parse_args(words)
  aim = target.find_target(args.topology, args.memory, args.hours, args.size)
  cohort = read_cohort(planning._names(args), args.data_dir, args.scans, name=args.name)
  print(report.fingerprint(cohort), flush=True)
  experiment = Experiment(cohort, aim, args.data_dir)
  attempts = planning._fit(experiment, args)
  best = attempts[-1]
  choices = experiment.choices(best.layout, best)
  print(report.plan(choices))
  print(report.memory(aim, attempts), flush=True)
  values = {choice.name: choice.value for choice in choices}
  layout, seen = best.layout, best.trial
  size = [n * mm for n, mm in zip(layout.patch, layout.spacing, strict=True)]
  known = seen.peak + (report.LIBRARIES if aim.on_cpu else 0)
  return (
    _by(np.median(cohort.spacings, 0)),
    _by(layout.spacing),
    f'{_by(layout.patch)}, {" x ".join(f"{mm:.0f}" for mm in size)} mm',
    str(layout.batch),
    f'{values["train.steps"]:,}',
    ', '.join(f'{low:.0f}..{high:.0f}' for low, high in values['data.windows']),
    str(values['data.foreground']),
    ', '.join(values['evaluation.postprocess']) or 'none',
    f'{best.predicted / 2**30:.2f}',
    f'{seen.peak / 2**30:.2f}',
    f'{100 * (best.predicted / seen.peak - 1):+.0f} %',
    *(
      (
        f'{known / 2**30:.2f}',
        f'{seen.measured / 2**30:.2f}',
        f'{100 * (known / seen.measured - 1):+.0f} %',
      )
      if seen.measured
      else ('', '', '')
    ),
  )


def _by(numbers) -> str:
  return ' x '.join(f'{n:.3g}' for n in numbers)


def main() -> None:
  """Prints a plan for each cohort, and the table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--data', type=pathlib.Path, required=True, help='with openkbp/ and thorax/')
  parser.add_argument('--work', type=pathlib.Path, required=True, help='to write cohorts into')
  parser.add_argument('--thick', type=int, default=6, help='phantoms in thick slices')
  parser.add_argument('--only', default='', help='cohorts whose name matches, as a regex')
  parser.add_argument('--hours', help='of training on this machine')
  parser.add_argument('--memory', help='of a device, as 24GiB')
  parser.add_argument('--topology', help='of TPUs that are not here')
  args = parser.parse_args()
  given = {name: getattr(args, name) for name in ('hours', 'memory', 'topology')}
  aim = [f'--{name}={value}' for name, value in given.items() if value]
  nowhere = f'--data-dir={args.work / "data"}'
  cohorts = {
    'phantoms': lambda: ['--sources=phantom'],
    'OpenKBP': lambda: ['--sources=openkbp', f'--manual-dir={args.data / "openkbp"}'],
    'chests with lung tumours': lambda: [
      '--sources=nifti_folder', f'--manual-dir={write_chests(args.data, args.work)}',
    ],
    'phantoms in thick slices': lambda: [
      '--sources=nifti_folder', f'--manual-dir={write_thick(args.work, args.thick)}',
    ],
  }  # fmt: skip
  rows = []
  for name, words in cohorts.items():
    if re.search(args.only, name):
      print(f'\n=== {name}', flush=True)
      rows.append((name, *plan([*words(), nowhere, *aim])))
  print(f'\n| {" | ".join(_COLUMNS)} |\n|{"-|" * len(_COLUMNS)}')
  for row in rows:
    print(f'| {" | ".join(row)} |')


if __name__ == '__main__':
  sys.exit(main())
