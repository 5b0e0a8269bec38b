"""How long a run will take: told before by the last one, or after its first steps."""

import json

import jax
import pytest

from mome_jax.configs import demo
from mome_jax.runtime import durations
from mome_jax.training import forecast


@pytest.fixture(autouse=True)
def cache(tmp_path):
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  yield tmp_path
  jax.config.update('jax_compilation_cache_dir', before)


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands still until it is told to go on."""
  now = [0.0]
  monkeypatch.setattr(forecast.time, 'perf_counter', lambda: now[0])
  return now


def begin(config, validations=0, first=0):
  lines = []
  told = forecast.Forecast(config, first, validations, lines.append)
  told.announce()
  return told, lines


def run(told, clock, steps, seconds):
  for done in steps:
    clock[0] += seconds
    told.step(done)


def test_the_first_run_tells_after_its_first_steps(clock):
  told, lines = begin(demo.get_config())
  assert lines == ['1200 steps: how long they take is told after the first ones']
  clock[0] += 30  # the first step waits for what is loaded
  run(told, clock, range(1, 5), 3)
  assert len(lines) == 1  # nine seconds are too few
  run(told, clock, range(5, 100), 3)
  (line,) = lines[1:]
  # Five steps are done, each took 3 s: 1195 are left, 3585 s.
  assert line.startswith('1195 steps are left: about 60 min (3 s a step), until ')


def test_the_next_run_tells_before_it_compiles(clock):
  told, _ = begin(demo.get_config())
  for seconds in (9.0, 0.3, 0.3):
    told.row({'seconds_per_step': seconds})
  told.row({'seconds_per_step': 0.3, 'validation/seconds': 40.0})  # compiled, too
  told.row({'seconds_per_step': 0.3, 'validation/seconds': 10.0})
  told, lines = begin(demo.get_config(), validations=3, first=200)
  # 1000 steps of 0.3 s and 3 validations of 10 s: 330 s.
  assert lines[0].startswith(
    '1000 steps are left: about 6 min (0.3 s a step, as last time, 3 validations of 10 s), until '
  )
  run(told, clock, range(201, 400), 0.35)
  assert len(lines) == 1  # it is about as announced


def test_a_time_that_was_wrong_is_put_right(clock):
  config = demo.get_config()
  begin(config)[0].row({'seconds_per_step': 0.1})
  told, lines = begin(config)
  run(told, clock, range(1, 30), 1.0)
  assert lines[1].startswith('1189 steps are left: about 20 min (1 s a step, not 0.1 s), until ')


def test_a_validation_is_in_no_step(clock):
  told, lines = begin(demo.get_config())
  run(told, clock, range(1, 4), 1.0)
  told.row({'seconds_per_step': 1.0, 'validation/seconds': 50.0})
  clock[0] += 50
  run(told, clock, range(4, 20), 1.0)
  assert '(1 s a step)' in lines[1]


@pytest.mark.parametrize(('field', 'value'), [
  ('data.patch', (40, 40, 40)), ('model.dtype', 'bfloat16'), ('train.batch_size', 2),
  ('train.accumulate', 2), ('classes', ('liver',)),
])  # fmt: skip
def test_another_network_is_another_matter(field, value):
  begin(demo.get_config())[0].row({'seconds_per_step': 0.1})
  config = demo.get_config()
  config.update_from_flattened_dict({field: value})
  assert 'told after the first ones' in begin(config)[1][0]


def test_more_steps_or_another_rate_are_not():
  begin(demo.get_config())[0].row({'seconds_per_step': 0.1})
  config = demo.get_config()
  config.train.steps, config.train.learning_rate, config.seed = 2400, 1e-3, 7
  assert begin(config)[1][0].startswith('2400 steps: about 4 min (0.1 s a step, as last time)')
  assert forecast.last_step(config) == 0.1


def test_whatever_is_in_the_file(cache):
  (cache / 'seconds.json').write_text('{"half')
  assert durations.last('a') is None
  durations.note('a', 1.234)
  durations.note('b', 2.0)
  durations.note('a', 3.0)
  assert json.loads((cache / 'seconds.json').read_text()) == {'b': 2.0, 'a': 3.0}
  assert durations.last('') == 3.0  # the newest


def test_folds():
  config = demo.get_config()
  config.data.fold = 2
  assert forecast.of_folds(config, 5) == (
    '5 folds of 1200 steps: how long they take is told after the first one'
  )
  begin(config)[0].row({'seconds_per_step': 0.5})
  # 4 folds of 1200 steps of half a second: 2400 s.
  text = forecast.of_folds(config, 4)
  assert text.startswith('4 folds of 1200 steps: about 40 min of training (0.5 s a step, as last')
  text = forecast.after_fold(3, 1800.0)
  assert text.startswith(
    '3 folds are left: about 1.5 h, if each takes as long as this one (30 min)'
  )
