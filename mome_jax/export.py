r"""Makes a model folder of a training, to hand on: parameters, config and vocabulary, no optimizer.

python -m mome_jax.export --checkpoint=runs/openkbp_cpu --output=models/openkbp --dtype=bfloat16

Of several, one folder is made that holds them all and is used as one: --checkpoint A B C.
"""

import argparse
import sys
from collections.abc import Sequence

from absl import logging
from etils import epath

from input_pipeline.cli import Parser, dashed
from input_pipeline.errors import command


def export(path: epath.PathLike, output: epath.PathLike, dtype: str = 'float32') -> None:
  """Writes a model folder.

  The list of its training cases, names included, and what its classes look like go along.

  Args:
    path: a model folder, a training workdir (its newest checkpoint), or one of its
      `checkpoints/STEP`.
    output: of the model folder; created.
    dtype: parameters are stored in; bfloat16 halves the size and costs 2 or 3 digits. They are
      float32 again when they are read.

  Raises:
    CheckpointError: if there is no model, or the output holds one already.
  """
  import jax

  from mome_jax import checkpoint
  from mome_jax.checkpoint import training_cases
  from mome_jax.configs import base
  from mome_jax.plausibility import record
  from mome_jax.text.vectors import TextVectors

  config = checkpoint.load_config(path)
  model = checkpoint.load_model(path, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
  # Folders that others do not have.
  config.data_dir, config.init = base.get_config().data_dir, base.get_config().init
  config.text.vectors = ''
  description = checkpoint.text_file(path, config)
  text = {'tokenizer': description}
  if config.text.mode == 'frozen':
    text = {'vectors': TextVectors.load(description)}
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), model.params)
  checkpoint.save_model(output, config, params, **text)
  cases = training_cases.read(checkpoint.folder_of(path))
  if cases is not None:
    training_cases.write(checkpoint.folder_of(output), cases)
  looks = record.read(checkpoint.folder_of(path))
  if looks is not None:
    record.write(checkpoint.folder_of(output), looks)


def export_ensemble(
  paths: Sequence[epath.PathLike], output: epath.PathLike, dtype: str = 'float32'
) -> None:
  """Writes model folders `model_0`, `model_1`, ... and the `ensemble.json` that joins them.

  Args:
    paths: of the models, each as for `export`.
    output: folder of the ensemble; created.
    dtype: as for `export`.

  Raises:
    CheckpointError: if there is no model, or the output holds one already.
    EnsembleError: if they cannot be averaged.
  """
  from mome_jax import checkpoint
  from mome_jax.inference.ensemble import open_model

  open_model(paths)  # before anything is written
  names = [f'model_{number}' for number in range(len(paths))]
  for name, path in zip(names, paths, strict=True):
    export(path, epath.Path(output) / name, dtype)
  checkpoint.write_members(output, names)


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(prog='python -m mome_jax.export', description=__doc__, allow_abbrev=False)
  parser.add_argument(
    '--checkpoint',
    required=True,
    nargs='+',
    metavar='MODEL',
    help='workdir of a training, or model folder; of several, an ensemble is made',
  )
  parser.add_argument('--output', required=True, help='the new model folder')
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
  return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = make_parser().parse_args(dashed(argv))
  logging.set_verbosity(logging.ERROR)  # Orbax warns of what is normal
  from mome_jax import checkpoint

  members = checkpoint.expand(args.checkpoint)
  if len(members) == 1:
    export(members[0], args.output, args.dtype)
    print(f'{args.output}: model of {members[0]} in {args.dtype}')
    return 0
  export_ensemble(members, args.output, args.dtype)
  print(f'{args.output}: ensemble of {len(members)} models in {args.dtype}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
