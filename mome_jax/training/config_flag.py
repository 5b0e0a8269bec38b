"""What `--config` means: `demo`, `finetune:runs/demo`, a Python file, and values in it."""

import fnmatch
import functools
import importlib.util
import inspect
import operator
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from mome_jax import configs
from mome_jax.errors import ConfigError, UserError, suggest

_FOLDER = pathlib.Path(configs.__file__).parent
_IN_PACKAGE = re.compile(r'(?:.*[/\\])?mome_jax[/\\]configs[/\\](\w+)\.py')
_TRAINED = 'trained:'
_PARTS = ('__init__', 'base')  # no experiments
# What the others take after a colon; none of them is imported for --help.
AFTER_COLON = {'few_scans': 'NAME', 'finetune': 'MODEL', 'router': 'NAME'}
_SCORING = ('data_dir', 'data.sources', 'data.fold', 'data.folds', 'evaluation.*')
_PATHS = ('data_dir', 'text.vectors', 'init.checkpoint', 'init.text')


class FlagError(UserError):
  """A flag that does not exist or has no such value; the message names it."""

  exit_code = 2  # as argparse has it

  def __str__(self) -> str:
    return f'{super().__str__()} (--help lists the flags)'


def names() -> list[str]:
  """The experiments of this package."""
  return sorted({path.stem for path in _FOLDER.glob('*.py')} - set(_PARTS))


def resolve(text: str) -> tuple[pathlib.Path, list[str]]:
  """The file that `--config` names, and what stands after the colon.

  Args:
    text: the name of an experiment of this package ('demo'), its path from a checkout
      ('mome_jax/configs/demo.py', in whatever folder one is), or the path of another file; then,
      after a colon, what its `get_config` takes ('finetune:runs/demo').

  Raises:
    ConfigError: if there is no such experiment or file.
  """
  name, *argument = text.split(':', 1)
  if os.path.isfile(name):
    return pathlib.Path(name), argument
  packaged = _IN_PACKAGE.fullmatch(name)
  stem = packaged[1] if packaged else name
  if stem in names():
    return _FOLDER / f'{stem}.py', argument
  kind = 'file' if name.endswith('.py') and not packaged else 'experiment'
  hint = suggest(pathlib.Path(stem).stem, names())
  raise ConfigError(f'--config={name}: no such {kind}; {hint}')


def of_trained_model(argv: Sequence[str]) -> list[str]:
  """The command line, with the model's own config where an evaluation changes values without one.

  So `--config.evaluation.split=all` and the like change the config that the model was trained with.
  """
  given = [word for word in argv if re.match('--?(no)?config', word)]
  workdirs = [_value(argv, at) for at, word in enumerate(argv) if re.match('--?workdir', word)]
  evaluates = '--mode=evaluate' in argv or ('--mode', 'evaluate') in zip(
    argv, argv[1:], strict=False
  )
  values_only = given and all(re.match(r'--?(no)?config\.', word) for word in given)
  if not (evaluates and values_only and workdirs):
    return list(argv)
  return [argv[0], f'--config={_TRAINED}{workdirs[-1]}', *argv[1:]]


def _value(argv: Sequence[str], at: int) -> str:
  """The value of the flag at a place, in either spelling."""
  _, equals, value = argv[at].partition('=')
  return value if equals else ''.join(argv[at + 1 : at + 2])


def last_of_each(argv: Sequence[str]) -> list[str]:
  """The command line with each value of the config once, the last one, as of any other flag.

  A tuple that is given twice would be both joined.
  """
  places: dict[str, tuple[int, int]] = {}  # of the words of a flag, by its name
  dropped: set[int] = set()
  for at, word in enumerate(argv):
    match = re.match(r'--?(config\.[^=]+)(=?)', word)
    if match is None:
      continue
    apart = not match[2] and at + 1 < len(argv) and not re.match('--?[a-zA-Z]', argv[at + 1])
    dropped.update(range(*places.get(match[1], (0, 0))))
    places[match[1]] = at, at + 1 + apart
  return [word for at, word in enumerate(argv) if at not in dropped]


def define(name: str, values: flags.FlagValues, argv: Sequence[str]) -> None:
  """Defines `--NAME`, which reads a config, and `--NAME.VALUE`, which changes a value of it.

  Args:
    name: of the flag.
    values: to define it in.
    argv: the command line, program first.
  """
  known = [f'{one}:{AFTER_COLON[one]}' if one in AFTER_COLON else one for one in names()]
  config_flags.DEFINE_config_file(
    name,
    None,
    f'Experiment: {", ".join(known)}; or a Python file. NAME is another experiment or file, MODEL '
    f'a workdir, a model folder or shipped. --{name}.train.steps=100 and the like change any of '
    'its values, which mome_jax/configs/base.py explains.',
    flag_values=values,
    sys_argv=list(argv),
  )
  values[name].parser = _Parser(name, argv)


def asked(values: flags.FlagValues) -> list[str]:
  """The values of the config that the command line names, such as 'train.steps'."""
  return [] if values.config is None else [*config_flags.get_override_values(values['config'])]


def check_asked(values: flags.FlagValues) -> None:
  """FlagError for a value that changes nothing in the evaluation of a model by its own config."""
  if values.config is None:
    return
  if not config_flags.get_config_filename(values['config']).startswith(_TRAINED):
    return
  for name in asked(values):
    if not any(fnmatch.fnmatchcase(name, pattern) for pattern in _SCORING):
      raise FlagError(
        f'--config.{name}: the trained model has its own; an evaluation reads {", ".join(_SCORING)}'
      )


class ConfigFileFault(Exception):
  """Carries what a config's own code raised past absl, which would reword it."""

  def __init__(self, error: Exception):
    super().__init__(str(error))
    self.error = error


class _Parser(flags.ArgumentParser):
  def __init__(self, name: str, argv: Sequence[str]):
    self._name, self._argv = name, argv

  def parse(self, path: str) -> ConfigDict:
    """The locked config that a command line names."""
    try:
      config = load(path)
      _check_names(self._name, config, self._argv)
    except Exception as error:
      raise ConfigFileFault(error) from error
    return config


def start_from(model: str) -> ConfigDict:
  """The config of a trained model, set to start from it.

  Args:
    model: a model folder, a training workdir or one of its `checkpoints/STEP`; 'shipped', the one
      that comes with the package; or `hf:ORG/NAME`.

  Raises:
    CheckpointError: if there is none.
  """
  from mome_jax import checkpoint  # here, so that other configs come at once

  config = checkpoint.load_config(model)
  config.init.checkpoint, config.init.text = model, 'shipped'
  config.text.vectors = ''
  if config.text.mode == 'frozen':
    config.text.vectors, config.train.text_rate = str(checkpoint.text_file(model, config)), 0.0
  return config


def load(path: str) -> ConfigDict:
  """The locked config that `--config` names; see `resolve`.

  'trained:MODEL' is the config that a trained model is evaluated with. A `get_config` with a
  parameter `start` gets the config of the model after the colon, of `start_from`, one with a
  parameter `experiment` that of the experiment there; any other one gets those words themselves.
  Paths in it may begin with `~`, and it may import files beside it.

  Raises:
    ConfigError: if there is none.
    Exception: what the config's own code raises.
  """
  if path.startswith(_TRAINED):
    from mome_jax import checkpoint  # here, so that other configs come at once

    config = checkpoint.for_evaluation(path.removeprefix(_TRAINED), None)
    config.lock()
    return config
  path = path.removesuffix(':')  # nothing after it is no name
  file, argument = resolve(path)
  spec = importlib.util.spec_from_file_location(file.stem, file)
  if spec is None or spec.loader is None:
    raise ConfigError(f'--config={path}: not a Python file; see mome_jax/configs/demo.py')
  folder = os.path.abspath(file.parent)
  if not file.parent.samefile(_FOLDER) and folder not in sys.path:
    sys.path.append(folder)  # a file may start from another one beside it
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise ConfigError(f'--config={path}: has no get_config(); see mome_jax/configs/demo.py')
  parameters = inspect.signature(module.get_config).parameters
  if argument and not parameters:
    raise ConfigError(f'--config={path}: {file.stem} takes nothing after a colon')
  if 'start' in parameters and not argument:
    raise ConfigError(
      f'--config={path}: expected a model to start from after a colon, as {path}:shipped, the one '
      f'that comes with the package, or {path}:runs/demo'
    )
  if 'experiment' in parameters and not argument:
    raise ConfigError(
      f'--config={path}: expected another experiment after a colon, as {path}:openkbp_cpu'
    )
  try:
    if 'start' in parameters:
      config = module.get_config(start_from(*argument))
    elif 'experiment' in parameters:
      config = module.get_config(load(*argument))
    else:
      config = module.get_config(*argument)
  except UserError as error:
    raise ConfigError(f'--config={path}: {error}') from error
  if not isinstance(config, ConfigDict):
    raise ConfigError(f'--config={path}: get_config() returned {config!r}, not a ConfigDict')
  _expand_home(config)
  config.lock()
  return config


def _expand_home(config: ConfigDict) -> None:
  """Gives paths the user's home for `~`, as the command line does, in place."""
  for name in _PATHS:
    section, _, field = name.rpartition('.')
    part = config.get(section, {}) if section else config
    if isinstance(part.get(field), str):
      part[field] = os.path.expanduser(part[field])


def _check_names(flag: str, config: ConfigDict, argv: Sequence[str]) -> None:
  """Refuses values on the command line that the config does not have."""
  known = list(keys(config))
  for word in argv:
    match = re.match(rf'--?(?:no)?{flag}\.([^=\[]+)(\[)?', word)
    if match is None:
      continue
    if match[1] not in known:
      raise FlagError(f'--{flag}.{match[1]}: no such value; {nearest(match[1], known)}')
    value = functools.reduce(operator.getitem, match[1].split('.'), config)
    if match[2] and not isinstance(value, list):
      raise FlagError(
        f'{word.partition("=")[0]}: is a part of a value; give all of it: '
        f'--{flag}.{match[1]}="{value}"'
      )


def keys(config: ConfigDict, prefix: str = '') -> Iterable[str]:
  """Dotted names of all values and groups of values: 'train', 'train.steps', ..."""
  for key in config:
    yield prefix + key
    if isinstance(config[key], ConfigDict):
      yield from keys(config[key], f'{prefix}{key}.')


def nearest(name: str, known: Sequence[str]) -> str:
  """Which value was meant: one whose whole name is like it, or else whose last part is."""
  last = name.rpartition('.')[2]
  same = [one for one in known if one.rpartition('.')[2] == last]
  if same:
    return f'did you mean {" or ".join(same)}?'
  hint = suggest(name, known)
  return hint if hint.startswith('did') else 'mome_jax/configs/base.py lists all of them'


def parse(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
  """Reads the command line into `values`; returns the words that are no flags.

  Raises:
    FlagError, ConfigError: if a flag or a value cannot be read.
    Exception: what a config's own code raises.
  """
  try:
    return values(argv)[1:]
  except ConfigFileFault as fault:
    raise fault.error from None
  except flags.UnrecognizedFlagError as error:
    hint = suggest(error.flagname, [name for name in values if len(name) > 1])
    if '.' in error.flagname:  # a value of a config that is not given
      hint = f'it needs --{error.flagname.partition(".")[0]}=NAME before it'
    raise FlagError(f'unknown flag --{error.flagname}; {hint}') from error
  except flags.IllegalFlagValueError as error:
    raise FlagError(_illegal(values, str(error))) from error
  except flags.Error as error:
    raise FlagError(str(error)) from error


_TYPES = {'int': 'a whole number', 'float': 'a number', 'bool': 'true or false'}


def _illegal(values: flags.FlagValues, message: str) -> str:
  """Absl's 'flag --NAME=VALUE: REASON', with what the flag takes in place of Python's reason."""
  flag, colon, reason = message.removeprefix('flag ').partition(': ')
  name = flag.removeprefix('--').partition('=')[0]
  kind = values[name].flag_type() if name in values else ''
  return f'{flag}{colon}expected {_TYPES[kind]}' if kind in _TYPES else f'{flag}{colon}{reason}'
