"""Fixtures shared by all tests."""

import os
import pathlib
import signal

import hypothesis
import pytest

# Shared machines stall, and a red run must be red again: no time limits, the same examples.
hypothesis.settings.register_profile('steady', deadline=None, derandomize=True)
hypothesis.settings.load_profile('steady')

LONG = pathlib.Path(__file__).with_name('long.txt')


def long_files() -> list[pathlib.Path]:
  """The files whose tests take long, the longest first."""
  lines = LONG.read_text().splitlines()
  return [LONG.parent / line for line in lines if line and not line.startswith('#')]


def is_worker(config) -> bool:
  """Whether this process is one of several that share the tests."""
  return hasattr(config, 'workerinput')


def take_cores(worker: dict) -> None:
  """Gives a worker cores of its own: threads of two on the same cores wait for each other."""
  cores = sorted(os.sched_getaffinity(0))
  number, count = int(worker['workerid'].removeprefix('gw')), worker['workercount']
  if len(cores) >= count:
    os.sched_setaffinity(0, cores[number % count :: count])


def pytest_configure(config):
  if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in the background of a script
    signal.signal(signal.SIGINT, signal.default_int_handler)
  if is_worker(config) and hasattr(os, 'sched_setaffinity'):
    take_cores(config.workerinput)


def longest_first(items: list) -> None:
  """Sorts tests by file as tests/long.txt has them; all others follow as they were."""
  places = {file: place for place, file in enumerate(long_files())}
  items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_modifyitems(config, items):
  files = set(long_files())
  for item in items:
    if item.path in files:
      item.add_marker('long')
  if is_worker(config):  # files are handed out in this order
    longest_first(items)


@pytest.fixture(scope='session')
def programs(pytestconfig, tmp_path_factory) -> pathlib.Path:
  """Where compiled programs are kept: one folder for the workers and all that their tests start.

  For what goes through JAX_COMPILATION_CACHE_DIR or `compiled.kept`. It begins empty in each run.
  """
  folder = tmp_path_factory.getbasetemp()
  return (folder.parent if is_worker(pytestconfig) else folder) / 'compiled'


@pytest.fixture(scope='module')
def soon():
  """Programs of a file of tests are compiled soon rather than well; see tests/helpers/compiled.py.

  A file asks for it by `pytestmark = pytest.mark.usefixtures('soon')`.
  """
  import compiled

  with compiled.soon():
    yield


@pytest.fixture(scope='session')
def real_data() -> pathlib.Path:
  """The folder of real CT beside the checkout; tests skip where it is absent."""
  folder = pathlib.Path(__file__).resolve().parents[2] / 'shared' / 'data'
  if not folder.is_dir():
    pytest.skip('real CT is not beside this checkout')
  return folder
