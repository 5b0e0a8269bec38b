r"""Makes a model folder of a training, to hand on: parameters, config and vocabulary, no optimizer.

python -m mome_jax.export --checkpoint=runs/openkbp_cpu --output=models/openkbp --dtype=bfloat16
python -m mome_jax.export --checkpoint=runs/openkbp_cpu --output=models/hub --format=hf

Of several, one folder is made that holds them all and is used as one: --checkpoint A B C. With
--format=hf parameters are `model.safetensors`, and README.md is a model card with the front matter
of the Hugging Face Hub: upload the folder, and --checkpoint hf:ORG/NAME uses it from there.
--without-experimental leaves out the classes that too few patients taught.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
from etils import epath

from input_pipeline.cli import Parser, dashed
from input_pipeline.errors import UserError, command, writing
from input_pipeline.files import folder_lock, text_files

_UNFINISHED = '.unfinished'  # in the folder of an ensemble, names the members that it has made


def export(
  path: epath.PathLike,
  output: epath.PathLike,
  dtype: str = 'float32',
  *,
  form: str = 'orbax',
  licence: str = '',
  experimental: bool = True,
) -> None:
  """Writes a model folder.

  The list of its training cases, names included, and what its classes look like go along.

  Args:
    path: a model folder, a training workdir (the checkpoint that `evaluation.checkpoint` of its
      config says), or one of its `checkpoints/STEP`.
    output: of the model folder; created.
    dtype: parameters are stored in; bfloat16 halves the size and costs 2 or 3 digits. They are
      float32 again when they are read.
    form: 'orbax', or 'hf' with a model card.
    licence: for the model card, such as apache-2.0; '' is that of the card which the output has,
      or else the model; all else that this one says is kept.
    experimental: whether it knows the classes of `config.experimental`.

  Raises:
    CheckpointError: if there is no model, or the output holds one already, or a training run, or
      another export writes there; or its README.md is of something else, see
      `hf_folder.check_card`.
    UserError: if it cannot do without the experimental classes.
  """
  import jax

  from mome_jax import checkpoint
  from mome_jax.checkpoint import hf_folder
  from mome_jax.configs import base
  from mome_jax.text.vectors import TextVectors

  config = checkpoint.load_config(path)
  model = checkpoint.load_model(path, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
  # Folders that others do not have.
  usual = base.get_config()
  usual.init.finetunes = config.init.finetunes
  config.data_dir, config.init = usual.data_dir, usual.init
  config.text.vectors = ''
  if not experimental:
    _leave_out_experimental(config, path)
  description = checkpoint.text_file(path, config)
  text = {'tokenizer': description}
  if config.text.mode == 'frozen':
    text = {'vectors': TextVectors.load(description)}
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), model.params)
  with _alone(output) as folder:
    # A folder with parameters counts as a model: they come last.
    if form == 'hf':
      hf_folder.check_card(folder)
      _write_card(path, folder, config, params, licence)
    _copy_records(path, folder, config, experimental)
    checkpoint.save_model(folder, config, params, **text, form=form)
    mark = folder / 'params' / 'commit_success.txt'
    if mark.exists():  # Orbax writes there where it saved to, which is nobody else's business
      mark.write_text('Checkpoint commit was successful to params', encoding='utf-8')


@contextlib.contextmanager
def _alone(output: epath.PathLike) -> Iterator[epath.Path]:
  """The folder of a new model, in which no other export works; CheckpointError if one does."""
  from mome_jax import checkpoint

  folder = checkpoint.new_folder(output)
  refusal = checkpoint.CheckpointError(
    f'{folder}: another export writes there; wait for its end, or choose another folder'
  )
  with folder_lock.sole(folder, refusal):
    yield checkpoint.new_folder(folder)  # the other one may have come to its end since


def _copy_records(
  path: epath.PathLike, folder: epath.Path, config: ml_collections.ConfigDict, experimental: bool
) -> None:
  """Writes what is known of the training's cases and of the looks of its classes."""
  from mome_jax import checkpoint
  from mome_jax.checkpoint import training_cases
  from mome_jax.plausibility import record

  cases = training_cases.read(checkpoint.folder_of(path))
  looks = record.read(checkpoint.folder_of(path))
  with writing(folder, checkpoint.CheckpointError):
    for name in (training_cases.FILE, record.FILE):  # of a model that was there before
      (folder / name).unlink(missing_ok=True)
    if cases is not None:
      training_cases.write(folder, cases)
    if looks:
      known = looks if experimental else [look.of(config.classes) for look in looks]
      record.write(folder, known)


def _leave_out_experimental(config: ml_collections.ConfigDict, path: epath.PathLike) -> None:
  """Changes a config to the classes that enough patients taught."""
  rest = tuple(name for name in config.classes if name not in config.experimental)
  if config.model.bank.scales:
    raise UserError(
      f'{path}: its banks of experts attend to all classes of its training, experimental ones too; '
      'export it without --without-experimental'
    )
  if not rest:
    raise UserError(f'{path}: all its classes are experimental; nothing would be left')
  config.classes, config.experimental = rest, ()


def _check_experimental_alike(paths: Sequence[epath.PathLike], weak: Sequence[str]) -> None:
  """UserError where models know different classes without those experimental in any, `weak`."""
  from mome_jax import checkpoint

  for path in paths:
    if kept := set(weak) - {*checkpoint.load_config(path).experimental}:
      raise UserError(
        f'{path}: {", ".join(sorted(kept))} are not experimental in it, but in another of the '
        'models, which would know other classes then; export them with their experimental classes'
      )


def _write_card(
  path: epath.PathLike,
  output: epath.PathLike,
  config: ml_collections.ConfigDict,
  params: Any,
  licence: str,
) -> None:
  import jax

  from mome_jax import checkpoint
  from mome_jax.checkpoint import hf_folder

  text = hf_folder.card(
    config,
    name=epath.Path(output).name,
    licence=licence,
    before=hf_folder.read_card(checkpoint.folder_of(path)),
    parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
  )
  hf_folder.write_card(output, hf_folder.merged(text, hf_folder.read_card(output), licence))


def export_ensemble(
  paths: Sequence[epath.PathLike],
  output: epath.PathLike,
  dtype: str = 'float32',
  *,
  form: str = 'orbax',
  licence: str = '',
  experimental: bool = True,
) -> None:
  """Writes model folders `model_0`, `model_1`, ... and the `ensemble.json` that joins them.

  Args:
    paths: of the models, each as for `export`.
    output: folder of the ensemble; created.
    dtype: as for `export`.
    form: as for `export`; the card of the whole is that of its first model, but for what one that
      the output has says.
    licence: as for `export`.
    experimental: as for `export`.

  Raises:
    CheckpointError: as of `export`.
    UserError: as of `export`, and if their cards name several licences, that of the output none,
      and none is given.
    EnsembleError: if they cannot be averaged.
  """
  from mome_jax import checkpoint
  from mome_jax.checkpoint import hf_folder
  from mome_jax.inference.ensemble import open_model

  model = open_model(paths)  # before anything is written
  if not experimental:
    _check_experimental_alike(paths, model.config.experimental)
  if form == 'hf' and not (licence or hf_folder.licence_of(hf_folder.read_card(output))):
    cards = (hf_folder.read_card(checkpoint.folder_of(path)) for path in paths)
    licences = sorted({hf_folder.licence_of(card) for card in cards} - {''})
    if len(licences) > 1:
      raise UserError(f'the models have several licences ({"; ".join(licences)}); pass --licence')
  names = [f'model_{number}' for number in range(len(paths))]
  with _alone(output) as folder:
    _take_back(folder)  # of an export that was killed
    if form == 'hf':
      hf_folder.check_card(folder)
    made = [name for name in names if not (folder / name).exists()]
    with writing(folder, checkpoint.CheckpointError):
      text_files.replace(folder / _UNFINISHED, '\n'.join(made))
    with contextlib.ExitStack() as undo:  # a member without the others would pass for the whole
      undo.callback(_take_back, folder)
      for name, path in zip(names, paths, strict=True):
        export(path, folder / name, dtype, form=form, licence=licence, experimental=experimental)
      undo.pop_all()
    if form == 'hf':
      first = hf_folder.read_card(folder / names[0])
      card = hf_folder.merged(first, hf_folder.read_card(folder), licence)
      hf_folder.write_card(folder, card)
    checkpoint.write_members(folder, names)
    (folder / _UNFINISHED).unlink()


def _take_back(folder: epath.Path) -> None:
  """Removes the members of an ensemble that has not come to its end."""
  mark = folder / _UNFINISHED
  if mark.exists():
    for name in mark.read_text(encoding='utf-8').split():
      (folder / name).rmtree(missing_ok=True)
    mark.unlink()


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = Parser(prog='python -m mome_jax.export', description=__doc__, allow_abbrev=False)
  parser.add_argument(
    '--checkpoint',
    required=True,
    nargs='+',
    metavar='MODEL',
    help='workdir of a training, model folder, hf:ORG/NAME or shipped; of several, an ensemble is '
    'made',
  )
  parser.add_argument('--output', required=True, help='the new model folder')
  parser.add_argument(
    '--dtype',
    choices=('float32', 'bfloat16'),
    default='float32',
    help='of the parameters: bfloat16 takes half the space (float32)',
  )
  parser.add_argument(
    '--format',
    choices=('orbax', 'hf'),
    default='orbax',
    help='hf: a folder for the Hugging Face Hub, with a model card',
  )
  parser.add_argument(
    '--without-experimental',
    action='store_true',
    help='the new folder does not know the experimental classes',
  )
  parser.add_argument(
    '--licence',
    default='',
    help='for the model card, such as apache-2.0; by default that of the card it has',
  )
  return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = make_parser().parse_args(dashed(argv))
  if args.licence and args.format != 'hf':
    raise UserError(f'--licence {args.licence}: is for the model card; add --format=hf')
  from mome_jax import checkpoint

  members = checkpoint.expand(args.checkpoint)
  more = {
    'form': args.format,
    'licence': args.licence,
    'experimental': not args.without_experimental,
  }
  if len(members) == 1:
    export(members[0], args.output, args.dtype, **more)
    print(f'{args.output}: model of {members[0]} in {args.dtype}')
    return 0
  export_ensemble(members, args.output, args.dtype, **more)
  print(f'{args.output}: ensemble of {len(members)} models in {args.dtype}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
