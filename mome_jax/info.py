"""What is installed here: versions, devices, a model and its classes.

python -m mome_jax.info
python -m mome_jax.info --json
python -m mome_jax.info runs/demo
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence

from input_pipeline.anatomy import TEMPLATE
from input_pipeline.cli import Parser, dashed
from input_pipeline.errors import command, one_line
from mome_jax import __version__, shipped
from mome_jax.predict import run_record


def info(models: Sequence[str | os.PathLike] = (shipped.NAME,)) -> dict:
  """Version, platform, packages, devices, the place of compiled programs, models.

  Args:
    models: model folders, training workdirs or names, as `predict --checkpoint` takes them.

  Returns:
    What JSON can hold; `no_devices` is why JAX has none, or ''; `models` is a list of objects with
    name, path, spacing in mm, HU windows and classes, each with the synonyms that it was trained
    with.

  Raises:
    CheckpointError: if one of them is none.
  """
  from mome_jax import checkpoint
  from mome_jax.runtime import compilation

  devices, no_devices = _devices()
  return {
    'version': __version__,
    'python': platform.python_version(),
    'platform': platform.platform(),
    'packages': run_record.versions(),
    'devices': devices,
    'no_devices': no_devices,
    'compilation_cache': compilation.cache_folder() or 'off',
    'models': [_describe(model) for model in checkpoint.expand(models)],
  }


def _devices() -> tuple[list[str], str]:
  """The devices, and why there are none: whoever asks may be looking for just that."""
  import jax

  try:
    return [f'{one.platform}:{one.id} {one.device_kind}' for one in jax.devices()], ''
  except (RuntimeError, AssertionError) as error:  # JAX asserts that JAX_PLATFORMS names some
    asked = f'JAX has none of JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS", "")}'
    return [], one_line(error) or asked


def _describe(model: str) -> dict:
  from mome_jax import checkpoint
  from mome_jax.checkpoint import hub

  config, folder = checkpoint.load_config(model), checkpoint.folder_of(model)
  template = TEMPLATE.extend(config.new_classes)
  classes = [template.get(name) for name in config.classes]
  return {
    'name': hub.name_of(folder) or folder.name,
    'path': str(folder),
    'spacing_mm': list(config.data.spacing),
    'hu_windows': [list(window) for window in config.data.windows],
    'classes': [
      {
        'name': one.name,
        'synonyms': list(one.synonyms),
        'experimental': one.name in config.experimental,
      }
      for one in classes
    ],
  }


def text(facts: dict) -> str:
  """What `info` returns, for the eye."""
  packages = ', '.join(f'{name} {version}' for name, version in facts['packages'].items())
  lines = [
    f'MoME-JAX {facts["version"]}',
    f'Python     {facts["python"]}, {facts["platform"]}',
    f'Packages   {packages}',
    f'Devices    {", ".join(facts["devices"]) or "none: " + facts["no_devices"]}',
    f'Compiled   {facts["compilation_cache"]}',
  ]
  for model in facts['models']:
    spacing = ' x '.join(f'{mm:g}' for mm in model['spacing_mm'])
    lines += ['', f'Model {model["name"]}, {spacing} mm, {model["path"]}']
    width = max(len(one['name']) for one in model['classes']) + 2
    for one in model['classes']:
      names = (['(experimental)'] if one['experimental'] else []) + [', '.join(one['synonyms'])]
      lines.append(f'  {one["name"]:{width}}{" ".join(names)}'.rstrip())
  return '\n'.join(lines)


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(prog='python -m mome_jax.info', description=__doc__, allow_abbrev=False)
  parser.add_argument(
    'model',
    nargs='*',
    default=[shipped.NAME],
    metavar='MODEL',
    help='model folder, workdir of a training, hf:ORG/NAME or shipped (default), the one that '
    'comes with the package',
  )
  parser.add_argument('--json', action='store_true', help='one JSON object')
  return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = make_parser().parse_args(dashed(argv))
  facts = info(args.model)
  print(json.dumps(facts, indent=2) if args.json else text(facts))
  return 0


if __name__ == '__main__':
  sys.exit(main())
