"""Commands and programs of README and docs: each is understood by the parser that users meet.

What cannot be run or parsed here stands under `<!-- not run: reason -->` in the page's source.
"""

import argparse
import ast
import contextlib
import copy
import importlib
import importlib.util
import pathlib
import re
import shlex
import tomllib
import types

import pytest
from absl import flags
from ml_collections import config_flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [
  *(ROOT / name for name in ('README.md', 'BUILD.md', 'launch/README.md')),
  ROOT / 'mome_jax/assets/openkbp/README.md',
  *sorted((ROOT / 'docs').rglob('*.md')),
]
FENCE = re.compile(
  r'(<!-- not run: [^\n]+ -->\n)?^( *)```(\w*)\n(.*?)^ *```$', flags=re.DOTALL | re.MULTILINE
)
INLINE = re.compile(
  r'`((?:PYTHONPATH=\S* )?(?:python -m \S+ |python \S+\.py |make |pip install )[^`]+)`'
)
CHEAP = {'--help', '--list', '--version'}  # these are run


class ParsedError(Exception):
  """Raised in place of what a program does after it has understood its arguments."""


def commands(page):
  """(command line, reason not to run it or None) of a page's blocks and of its running text."""
  text = page.read_text()
  for mark, _, language, body in FENCE.findall(text):
    if language in ('', 'bash', 'sh', 'console'):
      for line in body.replace('\\\n', ' ').splitlines():
        if shlex.split(line, comments=True):
          yield ' '.join(line.split()), mark or None
  for line in INLINE.findall(FENCE.sub('', text)):
    if not set('[…') & set(line):
      yield ' '.join(line.split()), None


def programs(page):
  return [body for _, _, language, body in FENCE.findall(page.read_text()) if language == 'python']


ALL = [(page, line) for page in PAGES for line, mark in commands(page) if not mark]


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
  """A folder like a checkout in which the demo and OpenKBP were trained."""
  folder = tmp_path_factory.mktemp('checkout')
  for part in ('mome_jax', 'launch', 'docs', 'tests'):
    (folder / part).symlink_to(ROOT / part)
  (folder / 'runs').mkdir()
  for run in ('demo', 'openkbp_cpu'):
    (folder / 'runs' / run).symlink_to(ROOT / 'mome_jax/assets/openkbp')
  return folder


@pytest.mark.parametrize(
  ('page', 'line'), ALL, ids=[f'{page.stem}: {line[:60]}' for page, line in ALL]
)
def test_a_command_is_understood(page, line, checkout, monkeypatch):
  monkeypatch.chdir(checkout)
  words = shlex.split(line, comments=True)
  while re.match(r'[A-Z_]+=', words[0]):
    words.pop(0)
  understand(words, monkeypatch)


def understand(words, monkeypatch):
  match words:
    case ['python', '-m', 'mome_jax.main', *arguments]:
      parse_experiment(arguments)
    case ['python', '-m', module, *arguments] if module.startswith('tests.'):
      name = module.replace('.', '/')
      files = [ROOT / f'{name}.py', *(ROOT / name).glob('*.py')]
      has_options([file for file in files if file.is_file()], arguments)
    case ['python', '-m', 'pytest', *arguments]:
      assert all((ROOT / word).exists() for word in arguments if '/' in word)
    case ['python', '-m', module, *arguments]:
      call_main(module, arguments, monkeypatch)
    case ['python', 'launch/local_processes.py', *arguments]:
      spec = importlib.util.spec_from_file_location('local_processes', words[1])
      module = importlib.util.module_from_spec(spec)
      spec.loader.exec_module(module)
      parse(module.main, arguments, monkeypatch)
      understand(arguments[arguments.index('--') + 1 :], monkeypatch)
    case ['python', script, *arguments]:
      has_options([ROOT / script], arguments)
    case ['mome', *arguments]:
      call_main('mome_jax.cli', arguments, monkeypatch)
    case ['make', *targets]:
      known = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), flags=re.MULTILINE)
      assert {t for t in targets if '=' not in t} <= set(known)
    case ['pip', 'install', '-r', file, *_]:
      assert (ROOT / file).is_file()
    case ['pip', 'install', what]:
      project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
      extras = re.fullmatch(r'(?:\.|mome-jax|jax)(?:\[([\w,]+)\])?(?:==[\d.]+)?', what)[1]
      if extras and not what.startswith('jax'):
        assert set(extras.split(',')) <= project['optional-dependencies'].keys()
    case ['cp', '-r', source, _]:
      assert (ROOT / source).is_dir()
    case ['pre-commit' | 'git', *_]:
      pass
    case _:
      pytest.fail(f'not known: {words}; explain it here, or mark its block <!-- not run: why -->')


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
  main = importlib.import_module('mome_jax.main')
  values = flags.FlagValues()
  for flag in flags.FLAGS.get_flags_for_module(main):
    if flag.name != 'config':
      values[flag.name] = copy.deepcopy(flag)
  argv = ['main', *arguments]
  config_flags.DEFINE_config_file('config', None, flag_values=values, sys_argv=argv)
  assert values(argv) == ['main']
  assert values.config is not None or values.mode == 'evaluate'
  assert values.workdir or values.mode == 'compile'


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


PROGRAMS = [(page, body) for page in PAGES for body in programs(page)]


@pytest.mark.parametrize(('page', 'body'), PROGRAMS, ids=[page.stem for page, _ in PROGRAMS])
def test_a_program_names_what_exists(page, body):
  """It compiles, and every module, attribute and keyword argument of this project exists."""
  tree = ast.parse(body)
  names = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        importlib.import_module(alias.name)
    elif isinstance(node, ast.ImportFrom):
      module = importlib.import_module(node.module)
      for alias in node.names:
        if not hasattr(module, alias.name):
          importlib.import_module(f'{node.module}.{alias.name}')
        names[alias.asname or alias.name] = getattr(module, alias.name)
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      owner = names.get(node.value.id)
      if isinstance(owner, types.ModuleType):
        assert hasattr(owner, node.attr), f'{node.value.id}.{node.attr}'


def test_marks_give_a_reason():
  for page in PAGES:
    for _, mark in commands(page):
      assert mark is None or len(mark) > len('<!-- not run: -->\n') + 5, page
