"""The file that a plan writes."""

import pytest

from mome_jax.configs import demo
from mome_jax.plan import config_file
from mome_jax.plan.rules import Choice
from mome_jax.training import config_check, config_flag

CLASSES = ('portal and splenic vein', 'right adrenal gland', 'left adrenal gland') + tuple(
  f'{side} {organ}' for side in ('right', 'left') for organ in ('kidney', 'lung', 'femoral head')
)
CHOICES = [
  Choice('classes', CLASSES, 'all that occur'),
  Choice('data.spacing', (3.9, 3.9, 2.5), 'median of 142 scans, ' + 30 * 'for a long reason '),
  Choice('data.windows', ((-175.0, 250.0), (-1000.0, 1600.0)), 'two'),
  Choice('train.steps', 1900, ''),
  Choice('evaluation.postprocess', (), 'none'),
  Choice('data.balance', 'classes', 'one dataset'),
]


def test_the_file_is_the_config(tmp_path):
  path = tmp_path / 'planned.py'
  text = config_file.text('Planned for mine', ['python -m mome_jax.main'], 'demo', CHOICES)
  config_file.write(path, text, force=False)
  config = config_flag.load(str(path))
  expected = demo.get_config()
  expected.update_from_flattened_dict({choice.name: choice.value for choice in CHOICES})
  assert config.to_dict() == expected.to_dict()
  config_check.check(config)


def test_it_is_readable():
  text = config_file.text('Planned for mine', ['python -m mome_jax.main'], 'demo', CHOICES)
  assert max(map(len, text.splitlines())) <= 100
  assert text.startswith('r"""Planned for mine.\n\npython -m mome_jax.main\n"""\n')
  assert '  # median of 142 scans, for a long reason' in text
  assert '  config.train.steps = 1900\n' in text


def test_what_is_there_stays(tmp_path):
  path = tmp_path / 'planned.py'
  path.write_text('mine')
  with pytest.raises(config_file.OutputError, match='is there already; pass --force'):
    config_file.write(path, 'new', force=False)
  assert path.read_text() == 'mine'
  config_file.write(path, 'new', force=True)
  assert path.read_text() == 'new'
  assert [file.name for file in tmp_path.iterdir()] == ['planned.py']


@pytest.mark.parametrize('name', ['plan', 'my plan.py', '1.py', 'plan.json'])
def test_a_name_that_python_cannot_import_is_refused(name, tmp_path):
  with pytest.raises(config_file.OutputError, match=r'expected a name like plan\.py'):
    config_file.check_free(tmp_path / name, force=False)
