"""One base of mistakes: explained in one line, while faults of the program keep their traceback."""

import json
import os
import pathlib
import subprocess
import sys
import tomllib

import pytest

from input_pipeline import errors


def test_a_mistake_is_one_line_and_code_1(capsys):
  @errors.command
  def main(argv=None):
    raise errors.UserError('scan.nii:\n  no such file;\n  correct --input')

  assert main([]) == 1
  assert capsys.readouterr() == ('', 'error: scan.nii: no such file; correct --input\n')


@pytest.mark.parametrize('fault', [ValueError, KeyError, OSError, TypeError, RuntimeError])
def test_a_fault_of_the_program_passes(fault, capsys):
  @errors.command
  def main(argv=None):
    raise fault('planted')

  with pytest.raises(fault, match='planted'):
    main([])
  assert capsys.readouterr().err == ''


def test_a_module_that_an_extra_brings_is_named(capsys):
  @errors.command
  def main(argv=None):
    raise ModuleNotFoundError('No module named', name=argv[0])

  assert main(['optax.losses']) == 1
  told = capsys.readouterr().err
  assert (
    told == "error: needs optax.losses, which is not installed: pip install 'mome-jax[train]'\n"
  )
  with pytest.raises(ModuleNotFoundError):
    main(['nobody_knows'])


def test_the_extra_that_brings_a_module_is_one_of_the_package():
  root = pathlib.Path(__file__).parents[2]
  extras = tomllib.loads((root / 'pyproject.toml').read_text())['project']['optional-dependencies']
  assert {*errors._EXTRAS.values()} <= extras.keys()
  assert errors.install('transformers') == "pip install 'mome-jax[sentence]'"


def test_windows_itself_is_told_where_to_run_it(capsys, monkeypatch):
  monkeypatch.setattr(sys, 'platform', 'win32')
  monkeypatch.delattr('signal.SIGHUP')  # which Windows lacks
  assert errors.command(lambda argv: 0)([]) == 1
  told = 'error: Windows is not supported; run it in WSL 2: docs/install.md\n'
  assert capsys.readouterr() == ('', told)


def test_exit_codes_pass_and_control_c_is_130(capsys):
  assert errors.command(lambda argv: 75)([]) == 75

  @errors.command
  def main(argv=None):
    raise KeyboardInterrupt

  assert main([]) == 130
  assert capsys.readouterr().err == 'error: interrupted\n'


@pytest.mark.parametrize(
  ('work', 'broken'),
  [
    ('print("a line")', 'stdout'),
    ('print("x" * 100_000)', 'stdout'),
    ('[print("a line"), sys.exit(0)]', 'stdout'),  # as --help ends
    ('print("note", file=sys.stderr)', 'stderr'),
    ('print("x" * 100_000, file=sys.stderr)', 'stderr'),
  ],
)
def test_output_that_nobody_reads_ends_a_command_without_a_traceback(work, broken):
  script = f"""
import sys
import tomllib
from input_pipeline import errors
sys.stdin.read()
sys.exit(errors.command(lambda argv: {work} or 0)([]))
"""
  pipes = dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.PIPE)
  process = subprocess.Popen([sys.executable, '-c', script], **pipes)
  getattr(process, broken).close()
  process.stdin.close()
  other = process.stderr if broken == 'stdout' else process.stdout
  assert other.read() == b''
  other.close()
  assert process.wait() == 141


def test_another_pipe_that_breaks_is_a_fault_of_the_program(capfd):
  @errors.command
  def main(argv=None):
    raise BrokenPipeError('of a worker')

  with pytest.raises(BrokenPipeError, match='of a worker'):
    main([])


def test_a_command_may_have_no_output_at_all():
  script = 'from input_pipeline import errors; exit(errors.command(lambda argv: print(1) or 0)([]))'
  done = subprocess.run(
    ['bash', '-c', f"{sys.executable} -c '{script}' >&-"], capture_output=True, text=True
  )
  assert (done.returncode, done.stderr) == (0, '')


def test_what_the_encoding_of_a_terminal_lacks_is_escaped():
  """A table's dash in ISO-8859-1, say: what was asked for is done by then."""
  script = r'from input_pipeline import errors; exit(errors.command(lambda a: print("\u2013"))([]))'
  environment = os.environ | {'PYTHONIOENCODING': 'iso8859-1'}
  done = subprocess.run([sys.executable, '-c', script], capture_output=True, env=environment)
  assert (done.returncode, done.stdout, done.stderr) == (0, rb'\u2013' + b'\n', b'')


def test_a_planted_bug_keeps_its_traceback_in_a_real_command():
  script = (
    'import sys\n'
    'from input_pipeline.prepare import command, preparation\n'
    'def planted(*args, **keywords): raise ValueError("planted")\n'
    'preparation.prepare = planted\n'
    'sys.exit(command.main(["--source=phantom", "--data_dir=x"]))\n'
  )
  done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
  assert done.returncode == 1
  assert 'Traceback' in done.stderr
  assert done.stderr.rstrip().endswith('ValueError: planted')


def test_suggestions():
  known = ['liver', 'spleen', 'left lung', 'right lung', 'aorta', 'colon', 'stomach']
  assert errors.suggest('Livr', known) == 'did you mean liver?'
  assert errors.suggest('xyz', known) == 'known: ' + ', '.join(known)
  assert errors.suggest('capacty', ('dense', 'capacity')) == (
    'did you mean capacity? known: dense, capacity'
  )


def test_what_the_disk_refuses_names_the_file(tmp_path):
  (tmp_path / 'file').write_text('x')
  refused = pytest.raises(errors.UserError, match=r'report: cannot be written \(.*file.*; free')
  with refused, errors.writing(tmp_path / 'report'):
    (tmp_path / 'file' / 'report').write_text('x')
  full = pytest.raises(errors.UserError, match='/dev/full: cannot be written .No space left')
  with full, errors.writing('/dev/full'), open('/dev/full', 'w') as file:
    file.write('x')


def test_what_cannot_be_read_names_the_file(tmp_path):
  path = tmp_path / 'settings.json'
  for content, reason in ((None, 'No such file'), (b'{', 'Expecting property'), (b'\xff', 'utf-8')):
    if content is not None:
      path.write_bytes(content)
    refused = pytest.raises(errors.UserError, match=rf'settings\.json: cannot be read \(.*{reason}')
    with refused, errors.reading(path):
      json.loads(path.read_text('utf-8'))


@pytest.mark.parametrize(
  ('names', 'most', 'told'),
  [
    ([], 3, ''),
    (['a', 'b', 'c'], 3, 'a, b, c'),
    (['a', 'b', 'c', 'd'], 3, 'a, b, c and 1 more'),
    ({'a': 0, 'b': 1, 'c': 2}, 1, 'a and 2 more'),
  ],
)
def test_of_many_names_a_few_are_told(names, most, told):
  assert errors.few(names, most) == told
