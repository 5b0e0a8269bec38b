"""Notes of several threads, which Python's own warnings would mix up."""

import threading
import warnings

import pytest

from input_pipeline import remarks


def in_turns(*steps):
  """Runs generators in threads of their own, a step of each in turn; re-raises their errors."""
  barrier = threading.Barrier(len(steps), timeout=20)
  errors = []

  def run(step):
    try:
      for _ in step():
        barrier.wait()
    except Exception as error:
      errors.append(error)
      barrier.abort()

  threads = [threading.Thread(target=run, args=[step]) for step in steps]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  if errors:
    raise errors[0]


def test_each_thread_collects_what_it_tells_itself():
  collected = {}

  def reader(name, late):
    def steps():
      if late:
        yield
      with remarks.collected() as lines:
        collected[name] = lines
        yield
        remarks.tell(f'{name}: odd')
        yield
        remarks.tell(f'{name}: odd')
        remarks.tell(f'{name}: very')
        if late:
          yield  # the other one, which began before, ends before
      if not late:
        yield
        yield

    return steps

  in_turns(reader('a', late=False), reader('b', late=True))
  assert collected == {name: [f'{name}: odd', f'{name}: very'] for name in 'ab'}


def test_what_nobody_collects_is_a_warning_of_its_caller():
  def read():
    remarks.tell('a.nii: odd')

  with pytest.warns(UserWarning, match='a.nii: odd') as caught:
    read()
  assert caught[0].filename == __file__
  with remarks.collected() as outer:
    with remarks.collected() as inner:
      remarks.tell('x')
    remarks.tell('y')
  assert (outer, inner) == (['y'], ['x'])


def test_blocks_that_overlap_leave_warnings_as_they_were():
  hush = remarks.Hush('fake')
  heard = []

  def warn(name):
    code = compile(f"import warnings\nwarnings.warn('{name}')", name, 'exec')
    with warnings.catch_warnings(record=True) as caught:
      exec(code, {'__name__': name})
    heard.append(len(caught))

  before = list(warnings.filters)

  def first():
    with hush:
      yield
      yield
    yield
    yield

  def second():
    yield
    with hush:
      yield
      warn('fake.part')  # the first block has ended
      warn('other')
      yield
    yield

  in_turns(first, second)
  assert heard == [0, 1]
  assert list(warnings.filters) == before
  warn('fake.part')
  assert heard[-1] == 1
