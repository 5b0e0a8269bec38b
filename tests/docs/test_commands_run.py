"""Commands of README and docs, run as they stand on small data; every other one says why it is not.

A story is a folder in which commands run one after the other, with options that make them small.
"""

import contextlib
import importlib
import json
import os
import pathlib
import shutil

import compiled
import nibabel as nib
import numpy as np
import pages
import pytest
import tiny
from pages import PAGES

from input_pipeline import sources
from input_pipeline.anatomy import TEMPLATE
from input_pipeline.ct import volume
from mome_jax import shipped
from tests.input_pipeline.sources import layouts

RESULTS = pages.ROOT / 'docs/results/openkbp'
SMALL = '--spacing=12', '--brick=16'
UNSEEN = '--config.evaluation.pictures=0'
MINE = '--source=nifti_folder --manual_dir=FOLDER'

# Story -> commands in order -> options that are added.
STORIES: dict[str, dict[str, tuple[str, ...]]] = {
  'demo': {
    'mome prepare --source=phantom --data_dir=runs/data --spacing=6 --brick=32': (
      *SMALL,
      '--cases=3',
    ),
    'mome train --config=demo --workdir=runs/demo': (*tiny.SETTINGS, UNSEEN),
    'mome evaluate --workdir=runs/demo': (),
    'mome evaluate --workdir=runs/demo --config.evaluation.split=all': (),
    'mome export --checkpoint runs/demo --output models/demo --dtype bfloat16': (),
    'mome export --checkpoint runs/demo --output models/hub --format hf --licence apache-2.0': (),
    'mome predict --checkpoint runs/demo --input FOLDER --output out': (),
    'mome predict --checkpoint runs/demo --input FOLDER --output out --report': (),
    f'mome prepare --check {MINE}': (),
    f'mome prepare {MINE} --name=mine --data_dir=runs/data --spacing=6 --brick=32': SMALL,
    'mome inspect --data_dir=runs/data': (),
    'mome throughput --data_dir=runs/data --patch=32': (
      '--patch=16',
      '--seconds=0.1',
      '--parallel=1',
    ),
    'mome train --config=finetune:runs/demo --workdir=runs/mine --config.data.sources="(\'mine\',)"'
    " --config.classes=\"('liver', 'metastasis')\"": (UNSEEN, '--config.train.steps=2'),
    'mome evaluate --workdir=runs/mine': (),
  },
  'shipped': {
    'mome predict --demo --output out': (),
    'mome predict --input scan.nii.gz --output out '
    '--prompts "mandible, larynx, left parotid gland"': (),
    'mome predict --input scan.nii.gz --output out --report': (),
    'mome predict --input FOLDER --output out --skip-done --json': (),
  },
  'downloads': {
    'mome prepare --list': (),
    'mome prepare --check --source=lits --manual_dir=DIR': (),
    'mome prepare --source=lits --manual_dir=DIR --data_dir=runs/data': SMALL,
    'mome dedupe --download=lits=DIR --download=msd_liver=DIR --output=groups.json': (),
    'mome prepare --source=lits --manual_dir=DIR --data_dir=runs/data --groups=groups.json': (
      *SMALL,
      '--overwrite',
    ),
  },
  'scores': {
    'mome compare docs/results/openkbp/all_5600_finest docs/results/openkbp/all_5600_router': (),
    'mome compare docs/results/openkbp/all_5600_router docs/results/openkbp/all_5600_finest': (),
    'mome compare docs/results/openkbp/rates/before_seed_1 runs/after_seed_1': (),
    'mome compare runs/a runs/b': (),
    'mome compare runs/a runs/b runs/c': (),
    'mome compare runs/openkbp_cpu runs/peer_dynunet': (),
    'mome compare runs/openkbp_cpu runs/apart runs/experts runs/along runs/finest '
    'runs/peer_dynunet runs/peer_swinunetr': (),
    'mome compare runs/parts runs/parts_finest': (),
    'mome score --predictions out --references labelsTr': (),
  },
  'nothing': {
    'mome --help': (),
    'mome predict --help': (),
    'python -m mome_jax predict --help': (),
    'mome info': (),
    'mome completion bash': (),
  },
}
# Run -> where its scores stand among the results.
SCORES = {
  'a': 'mome', 'b': 'finest', 'c': 'dynunet', 'openkbp_cpu': 'all_5600_router',
  'experts': 'all_5600_equal', 'apart': 'all_5600_apart', 'along': 'all_5600',
  'finest': 'all_5600_finest',
  'peer_dynunet': 'dynunet', 'peer_swinunetr': 'swin_unetr',
  'parts': 'parts_2000', 'parts_finest': 'parts_finest_2000',
  'after_seed_1': 'rates/after_seed_1',
}  # fmt: skip


def nnunet_folder(folder):
  """Two phantoms, whose liver tumours are called metastases."""
  values = {'background': 0, 'liver': 1, 'metastasis': 2}
  new = [{'name': 'metastasis', 'parent': 'liver', 'synonyms': ['secondary liver tumor']}]
  for part in ('imagesTr', 'labelsTr'):
    (folder / part).mkdir(parents=True)
  # Of three phantoms one is of the source that labels liver and tumour.
  cases = sources.phantom_cases(train=4, validation=0, spacing=(12.0, 12.0, 12.0))[::3]
  codes = TEMPLATE.get('liver').index, TEMPLATE.get('liver tumor').index
  for i, case in enumerate(cases):
    scan = case.load()
    label = sum(n * (scan.codes == code) for n, code in enumerate(codes, 1))
    volume.write_nifti(folder / f'imagesTr/c{i}_0000.nii.gz', scan.image, scan.geometry, np.int16)
    volume.write_nifti(folder / f'labelsTr/c{i}.nii.gz', label, scan.geometry, np.uint8)
  (folder / 'dataset.json').write_text(
    json.dumps({'labels': values, 'new_classes': new, 'missing_is': 'absent'})
  )


def set_up(story):
  """What a reader has before the first command, in the working folder."""
  folder = pathlib.Path()
  match story:
    case 'demo':
      nnunet_folder(folder / 'FOLDER')
    case 'shipped':
      scan = nib.load(shipped.SCAN).slicer[15:55, 15:55, 20:60]
      nib.save(scan, folder / 'scan.nii.gz')
      (folder / 'FOLDER').mkdir()
      nib.save(scan, folder / 'FOLDER/scan.nii.gz')
    case 'downloads':
      for name in ('lits', 'msd_liver'):
        layouts.LAYOUTS[name](folder / 'DIR', (1, 2))
    case 'scores':
      (folder / 'docs').symlink_to(pages.ROOT / 'docs')
      (folder / 'runs').mkdir()
      for run, scores in SCORES.items():
        (folder / 'runs' / run).symlink_to(RESULTS / scores)
      for name in ('out', 'labelsTr'):
        (folder / name).mkdir()
        mask = np.zeros((8, 8, 8), np.uint8)
        mask[2:6, 2:6, 2 : 5 if name == 'out' else 6] = 1
        nib.save(nib.Nifti1Image(mask, np.diag([2, 2, 2, 1])), folder / name / 'a.nii.gz')
        (folder / name / 'dataset.json').write_text('{"labels": {"background": 0, "liver": 1}}')
    case 'nothing':
      (folder / 'mome_jax').symlink_to(pages.ROOT / 'mome_jax')
      (folder / 'runs').mkdir()


def call(words):
  """Runs a command in this process; its exit code."""
  match words:
    case ['mome', *arguments] | ['python', '-m', 'mome_jax', *arguments]:
      module = 'mome_jax.cli'
    case ['python', '-m', module, *arguments]:
      pass
    case ['cp', '-r', source, target]:
      shutil.copytree(source, target)
      return 0
  try:
    return importlib.import_module(module).main(arguments)
  except SystemExit as end:
    return end.code


def written(words):
  """The files and folders that a command names as those it writes."""
  text = ' '.join(words).replace('=', ' ').split()
  named = [text[i + 1] for i, word in enumerate(text) if word in ('--output', '--workdir')]
  return named[-1:]


@pytest.fixture
def place(tmp_path, monkeypatch, programs, story):
  """The working folder; what is compiled is kept."""
  monkeypatch.chdir(tmp_path)
  # The shipped model computes for longer than it compiles.
  how = contextlib.nullcontext() if story == 'shipped' else compiled.soon()
  with compiled.kept(programs), how:
    yield


@pytest.mark.usefixtures('place')
@pytest.mark.parametrize('story', STORIES)
def test_commands_run(story, capsys):
  set_up(story)
  for line, more in STORIES[story].items():
    words = [*pages.words(line), *more]
    if 'predict' in words and '--skip-done' not in words:
      with contextlib.suppress(FileNotFoundError):
        shutil.rmtree('out')
    code = call(words)
    printed = capsys.readouterr()
    assert code == 0, f'{line}\n{printed.out[-2000:]}{printed.err[-3000:]}'
    assert printed.out or words[0] == 'cp', line
    assert all(os.path.exists(name) for name in written(words)), line


def test_every_command_is_run_or_says_why_not():
  run = {line for story in STORIES.values() for line in story}
  of_docs = [command for page in PAGES for command in pages.commands(page)]
  silent = [str(c) for c in of_docs if c.line not in run and len(c.why) < 8]
  assert not silent, '\n'.join(silent)
  assert run <= {command.line for command in of_docs}  # no story of what the docs do not say
  twice = [str(c) for c in of_docs if c.line in run and c.why and not c.whole_page]
  assert not twice, 'run, and marked as not run: ' + '\n'.join(twice)


def test_a_mark_of_a_page_has_commands():
  for page in PAGES:
    text = page.read_text()
    if pages.WHOLE_PAGE.search(text):
      assert any(command.whole_page for command in pages.commands(page)), page
    marks = text.count('<!-- not run: ')
    assert marks <= len([c for c in pages.commands(page) if c.why and not c.whole_page]), page
