"""The console command `mome`: one name for each program of this package.

Every command is a module with `main(argv)`, imported when it is asked for: `mome --help` and
`mome --version` import neither JAX nor TensorFlow.
"""

import dataclasses
import importlib
import importlib.util
import sys
import types
from collections.abc import Sequence

from input_pipeline.cli import called_as
from mome_jax import __version__
from mome_jax.errors import command, suggest

_WIDTH = 14  # of the column of names


@dataclasses.dataclass(frozen=True)
class Command:
  """What a name stands for.

  Attributes:
    module: has `main(argv)`, which returns an exit code, and `make_parser()`.
    help: one line.
    first: arguments put before the user's.
  """

  module: str
  help: str
  first: tuple[str, ...] = ()

  def load(self) -> types.ModuleType:
    """The module; of a package its `__main__`."""
    spec = importlib.util.find_spec(self.module)
    package = spec is not None and spec.submodule_search_locations
    return importlib.import_module(f'{self.module}.__main__' if package else self.module)


GROUPS = {
  'Segment': {
    'predict': Command('mome_jax.predict', 'masks, volumes and pictures of CT scans'),
    'serve': Command('mome_jax.serve', 'a local page to type prompts into, and a JSON API'),
    'dicom-node': Command('mome_jax.dicom_node', 'CT in, results back, by C-STORE'),
  },
  'Prepare data': {
    'prepare': Command('input_pipeline.prepare', 'check a dataset and write it for training'),
    'dedupe': Command('input_pipeline.dedupe', 'find the same scan in several datasets'),
    'inspect': Command('input_pipeline.inspect', 'a contact sheet of every prepared source'),
    'throughput': Command('input_pipeline.throughput', 'training patches a second of this machine'),
  },
  'Train': {
    'plan': Command('mome_jax.plan', 'choose spacing, patch, batch and steps for your data'),
    'finetune': Command('mome_jax.finetune', 'from your labelled scans to a model, in one command'),
    'train': Command('mome_jax.main', 'train an experiment; the same command resumes'),
    'crossval': Command('mome_jax.crossval', 'train, score and join the folds of an experiment'),
    'reproduce': Command('mome_jax.reproduce', "the paper's experiment, from downloads to tables"),
    'compile': Command(
      'mome_jax.main', 'memory and FLOPs on chips you do not have', ('--mode=compile',)
    ),
  },
  'Measure': {
    'evaluate': Command('mome_jax.main', 'score a model on held-out scans', ('--mode=evaluate',)),
    'score': Command('mome_jax.evaluate', 'score folders of masks', ('score',)),
    'nnunet': Command('mome_jax.evaluate', "results in nnU-Net's naming", ('nnunet',)),
    'compare': Command('mome_jax.evaluate', 'paired differences between runs', ('compare',)),
  },
  'Models': {
    'export': Command('mome_jax.export', 'a model folder of a training, to hand on'),
    'weights': Command('mome_jax.weights', 'convert a published checkpoint'),
    'plausibility': Command(
      'mome_jax.plausibility', 'what the classes of a model look like, to tell misplaced masks'
    ),
    'embed': Command('mome_jax.text.embed', 'text vectors of a published encoder'),
  },
  'About': {
    'info': Command('mome_jax.info', 'versions, devices, a model and its classes'),
    'completion': Command('mome_jax.completion', 'tab completion for bash, zsh or fish'),
  },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def page() -> str:
  """What `mome --help` prints."""
  lines = [
    f'MoME-JAX {__version__}: organs and tumours in 3D CT, segmented by text prompts.',
    '',
    'usage: mome COMMAND [OPTIONS]        (mome COMMAND --help tells more of one)',
    '',
  ]
  for group, commands in GROUPS.items():
    lines.append(group)
    lines += [f'  {name:{_WIDTH}}{command.help}' for name, command in commands.items()]
    lines.append('')
  return '\n'.join(
    [
      *lines,
      'First steps',
      '  mome predict --demo --output out',
      '  mome predict --input scan.nii.gz --output out --prompts "mandible, left parotid"',
      '  mome info',
    ]
  )


@command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code of the command.

  Args:
    argv: name of a command and its arguments; None is those of this process.
  """
  words = list(sys.argv[1:] if argv is None else argv)
  if words[:1] == ['help']:
    words = [*words[1:2], '--help']
  if not words or words[0] in ('-h', '--help'):
    print(page())
    return 0 if words else 2
  name, *rest = words
  if name == '--version':
    print(f'mome-jax {__version__}')
    return 0
  if name not in COMMANDS:
    hint = suggest(name, COMMANDS)
    print(f'error: mome {name}: no such command; {hint} (mome --help lists all)', file=sys.stderr)
    return 2
  chosen = COMMANDS[name]
  with called_as(f'mome {name}', spelled()):
    return chosen.load().main([*chosen.first, *rest])


def spelled() -> dict[str, str]:
  """How `mome` spells each command: {'python -m mome_jax.predict': 'mome predict', ...}."""
  return {
    ' '.join(('python -m', command.module, *command.first)): f'mome {name}'
    for name, command in COMMANDS.items()
  }


if __name__ == '__main__':
  sys.exit(main())
