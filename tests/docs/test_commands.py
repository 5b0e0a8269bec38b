"""Commands and programs of README and docs: each is understood by the parser that users meet.

Those that take seconds are run too: `test_commands_run.py`.
"""

import ast
import importlib
import re
import types

import documented
import pages
import pytest
from pages import PAGES, ROOT

from input_pipeline.anatomy import TEMPLATE
from mome_jax import checkpoint
from mome_jax.configs import demo
from mome_jax.predict.request import make_targets
from mome_jax.text import prompts
from mome_jax.text.familiarity import Familiarity

ALL = [command for page in PAGES for command in pages.commands(page)]


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
  """A folder like a checkout in which the demo and OpenKBP were trained."""
  folder = tmp_path_factory.mktemp('checkout')
  for part in ('mome_jax', 'launch', 'docs', 'tests'):
    (folder / part).symlink_to(ROOT / part)
  (folder / 'runs').mkdir()
  for run in ('demo', 'openkbp_cpu', 'shipped', 'five_classes', 'seven'):
    (folder / 'runs' / run).symlink_to(ROOT / 'mome_jax/assets/openkbp')
  (folder / 'models').mkdir()
  (folder / 'models/both').symlink_to(ROOT / 'mome_jax/assets/openkbp')
  return folder


@pytest.mark.parametrize('command', ALL, ids=str)
def test_a_command_is_understood(command, checkout, monkeypatch):
  monkeypatch.chdir(checkout)
  documented.understand(pages.words(command.line), monkeypatch)


HEAVY = ('napari',)  # what development, too, may go without
PROGRAMS = [(page, body) for page in PAGES for body in pages.programs(page)]


@pytest.mark.parametrize(('page', 'body'), PROGRAMS, ids=[page.stem for page, _ in PROGRAMS])
def test_a_program_names_what_exists(page, body):
  """It compiles, and every module, attribute and keyword argument of this project exists."""
  tree = ast.parse(body)
  names = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        if alias.name in HEAVY:
          pytest.importorskip(alias.name, exc_type=ImportError)
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


def test_the_prompt_that_needs_a_text_encoder_is_no_name():
  """A name would be read by the vector of its class, which the model carries."""
  page = (ROOT / 'docs/how-to/frozen-text.md').read_text()
  [prompt] = re.findall(r'--prompts "([^"]+)" --text-model', page)
  [target] = make_targets([prompt], TEMPLATE)
  assert target.taken_as == 'free'
  assert target.text not in prompts.training_prompts(TEMPLATE)
  config = demo.get_config()  # which the page trains
  judge = Familiarity(config.classes, TEMPLATE, embed=checkpoint.load_text_encoder())
  assert [judgement.verdict for judgement in judge.judge([prompt])] == ['known']


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_named_files_exist(page):
  for name in re.findall(r'`([\w-]+/[\w./-]*\.(?:py|md|sh|yaml|sbatch|toml))`', page.read_text()):
    if not name.startswith(('runs/', 'FOLDER/', 'evaluation/')):
      folders = (ROOT, ROOT / 'mome_jax', ROOT / 'input_pipeline', ROOT / 'docs')
      assert any((folder / name).exists() for folder in folders), name
