"""The console command: its page, what it starts, how help spells commands."""

import contextlib
import pathlib
import re
import subprocess
import sys

import pytest
from etils import epath

import mome_jax
from input_pipeline.cli import called_as
from mome_jax import cli
from mome_jax.errors import ConfigError
from mome_jax.plausibility import record
from mome_jax.text import vectors
from mome_jax.training import command_line

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEAVY = ('jax', 'flax', 'tensorflow', 'optax', 'orbax', 'scipy', 'nibabel', 'matplotlib')


def loaded(code):
  """Which of HEAVY a program imports."""
  program = f'{code}\nimport sys\nprint("|", *(set({HEAVY}) & set(sys.modules)))'
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
  return done.stdout.rpartition('|')[2].split()


@pytest.mark.parametrize(
  'call',
  ['cli.main(["--help"])', 'cli.main(["--version"])', 'cli.main(["nonsense"])',
   'cli.main(["train", "--help"])'],
)  # fmt: skip
def test_help_imports_nothing_that_computes(call):
  assert loaded(f'from mome_jax import cli; {call}') == []


# What takes long to import, or is installed only where one trains.
SLOW = (
  'clu', 'flax', 'highdicom', 'jax', 'matplotlib', 'optax', 'orbax', 'scipy.ndimage', 'scipy.stats',
  'surface_distance', 'tensorflow', 'tensorflow_datasets', 'torch',
)  # fmt: skip


def test_help_of_every_program_comes_before_slow_imports():
  """Of commands of `mome`, and of modules that are run with `python -m`."""
  modules = [
    '.'.join(file.relative_to(ROOT).with_suffix('').parts)
    for package in ('mome_jax', 'input_pipeline')
    for file in sorted((ROOT / package).rglob('*.py'))
    if '\ndef main(argv' in file.read_text() and file.stem != 'cli'
  ]
  assert len(modules) >= 13
  calls = [['mome_jax.cli', name] for name in cli.COMMANDS] + [[module] for module in modules]
  program = f"""
import contextlib, importlib, io, sys
for module, *words in {calls}:
  with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
    importlib.import_module(module).main([*words, '--help'])
  assert len(text.getvalue()) > 100, module
  print(module, *words, *({set(SLOW)} & set(sys.modules)))
"""
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
  assert done.stdout.splitlines() == [' '.join(call) for call in calls]


@pytest.mark.parametrize(
  'words', [['predict', '--inptu', 'a'], ['evaluate'], ['score'], ['export', '--dtype', 'int4']]
)
def test_so_do_mistakes(words):
  program = f"""
import contextlib, sys
from mome_jax import cli
from mome_jax.errors import ConfigError
with contextlib.suppress(SystemExit):
  cli.main({words})
print(*({set(SLOW)} & set(sys.modules)))
"""
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
  assert done.stderr.startswith('error: ') and done.stdout == '\n'


def test_the_page_lists_every_command(capsys):
  assert cli.main(['--help']) == 0
  page = capsys.readouterr().out
  for name, command in cli.COMMANDS.items():
    assert f'  {name} ' in page and command.help in page
  assert max(map(len, page.splitlines())) <= 100
  assert cli.main([]) == 2
  assert capsys.readouterr().out == page


def test_version(capsys):
  assert cli.main(['--version']) == 0
  assert capsys.readouterr().out == f'mome-jax {mome_jax.__version__}\n'


def test_an_unknown_command_names_the_nearest(capsys):
  assert cli.main(['predikt', '--input', 'x']) == 2
  assert capsys.readouterr().err.startswith(
    'error: mome predikt: no such command; did you mean predict?'
  )


@pytest.mark.parametrize('name', cli.COMMANDS)
def test_help_of_a_command_spells_it_as_it_was_called(name, capsys):
  command = cli.COMMANDS[name]
  try:
    code = cli.main([name, '--help'])
  except SystemExit as end:
    code = end.code
  text = capsys.readouterr().out
  assert code == 0
  assert f'mome {name} ' in text and f'python -m {command.module}' not in text
  try:
    command.load().main([*command.first, '--help'])
  except SystemExit as end:
    code = end.code
  text = capsys.readouterr().out
  assert code == 0
  assert f'python -m {command.module}' in text and f'mome {name} ' not in text


def test_help_of_crossval_offers_no_flag_that_it_refuses(capsys):
  assert cli.main(['crossval', '--help']) == 0
  flags = capsys.readouterr().out.partition('Flags:')[2]
  assert '--workdir' in flags
  assert not any(flag in flags for flag in ('--mode', '--topology', '--distributed'))


def test_help_names_no_function_of_the_source(capsys):
  functions = {
    f'{path.stem}.{name}'
    for package in ('mome_jax', 'input_pipeline')
    for path in (ROOT / package).rglob('*.py')
    for name in re.findall(r'^(?:def|class) (\w+)', path.read_text(), flags=re.MULTILINE)
  }
  for name in cli.COMMANDS:
    with contextlib.suppress(SystemExit):
      cli.main([name, '--help'])
  assert not functions & set(re.findall(r'\w+\.\w+', capsys.readouterr().out))


def test_messages_spell_commands_as_they_were_called(tmp_path, capsys):
  (tmp_path / record.FILE).write_text('{')
  with called_as('mome predict', cli.spelled()):
    with pytest.raises(record.RecordError, match='make it again with mome plausibility, or'):
      record.read(epath.Path(tmp_path))
    with pytest.raises(vectors.TextVectorError, match='make it with mome embed --model=FOLDER'):
      vectors.TextVectors.load(tmp_path / 'text.npz')
  assert cli.main(['inspect', f'--data-dir={tmp_path}']) == 1
  assert 'run mome prepare first' in capsys.readouterr().err
  assert cli.main(['crossval', '--config=demo', f'--workdir={tmp_path}', '--distributed']) == 2
  assert 'use mome train with' in capsys.readouterr().err


def test_windows_is_told_by_every_command():
  code = """
import signal, sys
sys.modules |= dict.fromkeys(['fcntl', 'resource'])  # what Windows lacks
del signal.SIGHUP
from mome_jax.cli import COMMANDS
mains = [command.load().main for command in COMMANDS.values()]
sys.platform = 'win32'
print({main([]) for main in mains})
"""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert done.stdout == '{1}\n', done.stderr
  assert set(done.stderr.splitlines()) == {
    'error: Windows is not supported; run it in WSL 2: docs/install.md'
  }


def test_a_page_that_nobody_reads_to_its_end():
  """As in `mome --help | head -1`."""
  words = [sys.executable, '-m', 'mome_jax', '--help']
  started = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  started.stdout.close()  # it prints later, once all is imported
  assert started.stderr.read() == b''
  assert started.wait() == 141


def test_arguments_reach_the_command(capsys):
  with pytest.raises(SystemExit) as end:
    cli.main(['score', '--predictions', 'a', '--refrences', 'b'])
  assert end.value.code == 2
  assert 'mome score --help' in capsys.readouterr().err
  assert cli.main(['evaluate', '--config=demo']) == 2
  assert 'mome evaluate needs --workdir' in capsys.readouterr().err


@pytest.mark.parametrize(
  'words',
  [
    ['weights', '--source=t5', '--checkpoint=gs://bucket/t5', '--output=m'],
    ['weights', '--source=t5', '--checkpoint=t5', '--output=gs://bucket/m'],
    ['embed', '--model=t5', '--output', 'gs://bucket/text.npz'],
    ['nnunet', '--results=out', '--dataset=dataset.json', '--output=gs://bucket/out'],
    ['reproduce', '--work=gs://bucket/work'],
  ],
)
def test_what_no_bucket_is_written_to_is_told(words, tmp_path, monkeypatch, capsys):
  """It was a folder called `gs:` here."""
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as end:
    cli.main(words)
  assert end.value.code == 2 and not [*tmp_path.iterdir()]
  assert ' is in a bucket; give a place on a disk' in capsys.readouterr().err


def test_paths_begin_at_home_in_either_spelling(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  words = ['--output=~/out', '--input', '~/a', '~', 'b~/c', '--prompts=~5 mm']
  args = cli.COMMANDS['predict'].load().make_parser().parse_args(words)
  assert args.output == '/home/me/out'
  assert args.input == ['/home/me/a', '/home/me', 'b~/c']
  assert args.prompts == '~5 mm'
  words = ['--download=phantom=~/scans', '--output', 'groups.json']
  args = cli.COMMANDS['dedupe'].load().make_parser().parse_args(words)
  assert args.download == [('phantom', '/home/me/scans')]


def test_paths_of_a_run_begin_at_home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'mine.py').write_text('from mome_jax.configs.demo import get_config\n')
  words = ['--config=~/mine.py', '--workdir=~/runs/x', '--config.data_dir=~/data']
  values = command_line.parse(['train', *words])
  assert values.workdir == f'{tmp_path}/runs/x'
  assert values.config.data_dir == f'{tmp_path}/data'
  (tmp_path / 'mine.py').write_text('def get_config(start):\n  return start\n')
  with pytest.raises(ConfigError, match=f'{tmp_path}/runs/start: no model'):
    command_line.parse(['train', '--config=~/mine.py:~/runs/start', '--workdir=x'])


def test_help_and_a_name_is_the_help_of_it(capsys):
  with pytest.raises(SystemExit) as end:
    cli.main(['help', 'score'])
  assert end.value.code == 0
  assert capsys.readouterr().out.startswith('usage: mome score ')


def test_a_reader_that_stops_reading_is_no_error():
  command = f'{sys.executable} -m mome_jax.cli train --help'
  done = subprocess.run(
    ['bash', '-c', f'{command} | true; exit "${{PIPESTATUS[0]}}"'], capture_output=True, text=True
  )
  assert done.returncode in (0, 141) and done.stderr == ''
