"""Commands and programs of README and docs: each is understood by the parser that users meet.

What cannot be run or parsed here stands under `<!-- not run: reason -->` in the page's source.
"""

import ast
import importlib
import pathlib
import re
import shlex
import types

import documented
import pytest

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
  r'`((?:PYTHONPATH=\S* )?(?:python -m [^\s`]+|python [^\s`]+\.py|mome|make|pip install) [^`]+)`'
)


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
  documented.understand(words, monkeypatch)


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


@pytest.mark.parametrize('page', [*PAGES, ROOT / 'CONTRIBUTING.md'], ids=lambda page: page.stem)
def test_named_files_exist(page):
  for name in re.findall(r'`([\w-]+/[\w./-]*\.(?:py|md|sh|yaml|sbatch|toml))`', page.read_text()):
    if not name.startswith(('runs/', 'FOLDER/', 'evaluation/')):
      folders = (ROOT, ROOT / 'mome_jax', ROOT / 'input_pipeline', ROOT / 'docs')
      assert any((folder / name).exists() for folder in folders), name
