"""Whether the commands of documentation and workflows are understood by what they call."""

import argparse
import ast
import contextlib
import importlib
import importlib.util
import itertools
import pathlib
import re
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHEAP = {'--help', '--list', '--version'}  # these are run


class ParsedError(Exception):
  """Raised in place of what a program does after it has understood its arguments."""


def understand(words, monkeypatch):
  """Fails where a command names a program, file, target or option that does not exist.

  Programs of this project parse their arguments and stop; those that cost nothing are run.

  Args:
    words: of the command line, without variables before it.
    monkeypatch: pytest's.
  """
  if words[0] == '.venv/bin/python':
    words = ['python', *words[1:]]
  match words:
    case ['mome', *arguments] | ['python', '-m', 'mome_jax' | 'mome_jax.cli', *arguments]:
      call_mome(arguments, monkeypatch)
    case ['python', '-m', 'mome_jax.main', *arguments]:
      parse_experiment(arguments)
    case ['python', '-m', module, *arguments] if module.startswith('tests.'):
      name = module.replace('.', '/')
      files = [ROOT / f'{name}.py', *(ROOT / name).glob('*.py')]
      has_options([file for file in files if file.is_file()], arguments)
    case ['python', '-m', 'pytest', *arguments]:
      assert all((ROOT / word).exists() for word in arguments if '/' in word)
    case ['python', '-m', 'build' | 'twine', *_] | ['pre-commit' | 'git' | 'conda' | '.', *_]:
      pass
    case ['python3' | 'python3.12', '-m', 'venv', _]:
      pass
    case ['python', '-m', 'pip', *rest]:
      understand(['pip', *rest], monkeypatch)
    case ['python', '-m', module, *arguments]:
      call_main(module, arguments, monkeypatch)
    case ['python', 'launch/local_processes.py' | 'launch/gke_jobset.py' as script, *arguments]:
      monkeypatch.syspath_prepend(ROOT / 'launch')  # as Python does for a script
      spec = importlib.util.spec_from_file_location(pathlib.Path(script).stem, script)
      module = importlib.util.module_from_spec(spec)
      spec.loader.exec_module(module)
      if '|' in arguments:
        arguments = arguments[: arguments.index('|')]
      parse(module.main, arguments, monkeypatch)
      program = arguments[arguments.index('--') + 1 :]
      if program[0].startswith('--'):
        parse_experiment([*program, '--workdir=gs://BUCKET/NAME'])
      else:
        understand(program, monkeypatch)
    case ['python', script, *arguments]:
      has_options([ROOT / script], arguments)
    case ['make', *targets]:
      known = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), flags=re.MULTILINE)
      assert {t for t in targets if '=' not in t} <= set(known)
    case ['pip', 'download' | 'install', *rest] if '-r' in rest:
      assert all(
        (ROOT / file).is_file() for option, file in itertools.pairwise(rest) if option == '-r'
      )
    case ['pip', 'install', '--no-index', *_]:
      pass
    case ['pip', 'install', *names] if set(names) <= {'build', 'pre-commit', 'twine'}:
      pass
    case ['pip', 'install', *parts] if 'napari[pyqt6]' in parts:
      assert all((ROOT / part / 'pyproject.toml').is_file() for part in parts if '[' not in part)
    case ['napari']:
      pass
    case ['pip', 'install', '-e', what] | ['pip', 'install', what]:
      project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
      extras = re.fullmatch(r'(?:\.|mome-jax|jax)(?:\[([\w,]+)\])?(?:==[\d.]+)?', what)[1]
      if extras and not what.startswith('jax'):
        assert set(extras.split(',')) <= project['optional-dependencies'].keys()
    case ['cp', '-r', source, _]:
      assert (ROOT / source).is_dir()
    case ['launch/tpu_pod.sh', verb, *arguments]:
      assert f'  {verb})' in (ROOT / 'launch/tpu_pod.sh').read_text()
      if verb == 'run':
        parse_experiment(arguments)
    case ['sbatch', *arguments]:
      script = next(word for word in arguments if not word.startswith('--'))
      assert (ROOT / script).is_file()
      parse_experiment(arguments[arguments.index(script) + 1 :])
    case ['docker', 'build', '-f', file, *_]:
      assert (ROOT / file).is_file()
    case ['gcloud' | 'kubectl' | 'export', *_]:  # nothing of theirs is here
      pass
    case _:
      pytest.fail(f'not known: {words}; explain it here')


def call_mome(arguments, monkeypatch):
  """Parses the arguments of a command of `mome`; runs it where that costs nothing."""
  cli = importlib.import_module('mome_jax.cli')
  name, *rest = arguments
  if CHEAP & {name} or name in ('info', 'completion'):
    assert not cli.main(arguments)
    return
  command = cli.COMMANDS[name]
  if command.module in ('mome_jax.main', 'mome_jax.crossval'):
    parse_experiment([*command.first, *rest])
  else:
    call_main(command.module, [*command.first, *rest], monkeypatch)


def call_main(module, arguments, monkeypatch):
  """Parses the arguments of a module; runs it where that costs nothing."""
  spec = importlib.util.find_spec(module)
  assert spec, f'no module {module}'
  name = f'{module}.__main__' if spec.submodule_search_locations else module
  main = importlib.import_module(name).main
  if CHEAP & set(arguments):
    with contextlib.suppress(SystemExit):
      assert not main(arguments)
  else:
    parse(main, arguments, monkeypatch)


def parse(main, arguments, monkeypatch):
  """Calls main until it has parsed its arguments; an error of the parser ends the test."""
  for parser in [argparse.ArgumentParser, *subclasses(argparse.ArgumentParser)]:
    if 'parse_args' in vars(parser):
      monkeypatch.setattr(parser, 'parse_args', stop_after(parser.parse_args))
  with pytest.raises(ParsedError):
    main(arguments)


def subclasses(parser):
  for child in parser.__subclasses__():
    yield child
    yield from subclasses(child)


def stop_after(parse_args):
  def parse_then_stop(*arguments, **keywords):
    parse_args(*arguments, **keywords)
    raise ParsedError

  return parse_then_stop


def parse_experiment(arguments):
  """Parses the flags of mome_jax.main as it does: config file, and overrides of its values."""
  importlib.import_module('mome_jax.main').parse(['main', *arguments])


def has_options(files, arguments):
  """Benchmarks import what a test should not; their options are read, not run."""
  assert files
  known = {'--help'}
  for file in files:
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.Constant) and str(node.value).startswith('--'):
        known.add(node.value.replace('_', '-'))
  asked = {word.split('=')[0].replace('_', '-') for word in arguments if word.startswith('--')}
  assert asked <= known, f'{files[0]}: no {sorted(asked - known)}; known: {sorted(known)}'
