"""Completion scripts, in the shells that are here."""

import os
import shutil
import subprocess

import pytest

from mome_jax import completion

# What bash does when the user types words and presses the tab key.
TAB = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
function=$(complete -p mome); function=${function##*-F }; function=${function%% *}
"$function" mome "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
echo "${COMPREPLY[*]}"
"""


def installed(shell):
  """The program of a shell; skips where it is not installed."""
  program = shutil.which(shell)
  if program is None:
    pytest.skip(f'{shell} is not installed on this machine')
  return program


@pytest.fixture(scope='module')
def scripts(tmp_path_factory):
  folder = tmp_path_factory.mktemp('completion')
  for shell in completion.SHELLS:
    (folder / shell).write_text(completion.script(shell))
  return folder


def test_every_option_says_what_it_is():
  [parts] = [a for a in completion._whole()._actions if a.choices]
  silent = [
    f'{name} {action.option_strings or action.dest}'
    for name, parser in parts.choices.items()
    for action in parser._actions
    if not action.help
  ]
  assert not silent


# What is typed, and what may follow.
REPLIES = [
  ('pr', 'predict prepare'),
  ('predict --prompts-', '--prompts-file'),
  ('prepare --source msd_l', 'msd_liver msd_lung'),
  ('train --config sp', 'sparse_32 sparse_8'),
  ('score --ref', '--references'),
  ('export --dtype ', 'float32 bfloat16'),
  ('completion ', 'bash zsh fish'),
  ('predict --input sca', 'scan.nii.gz'),
  ('finetune --data sca', 'scan.nii.gz'),
  ('dicom-node --config sca', 'scan.nii.gz'),
  ('compile --topo', '--topology'),
  ('crossval --topo', ''),
  ('train --topo', ''),
]


@pytest.mark.parametrize(('words', 'replies'), REPLIES)
def test_bash_completes(words, replies, scripts, tmp_path):
  (tmp_path / 'scan.nii.gz').touch()
  done = subprocess.run(
    ['bash', '-c', TAB, 'bash', scripts / 'bash', 'mome', *words.split(' ')],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stderr == ''
  assert sorted(done.stdout.split()) == sorted(replies.split())


@pytest.mark.parametrize(('words', 'replies'), REPLIES)
def test_fish_completes(words, replies, scripts, tmp_path):
  (tmp_path / 'scan.nii.gz').touch()
  program = f'source {scripts / "fish"}; complete --do-complete "mome {words}"'
  done = subprocess.run(
    [installed('fish'), '-c', program],
    cwd=tmp_path,
    env={**os.environ, 'HOME': str(tmp_path)},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stderr == ''
  assert {line.split('\t')[0] for line in done.stdout.splitlines()} == set(replies.split())


@pytest.mark.parametrize('shell', completion.SHELLS)
def test_the_shell_can_read_its_script(shell, scripts):
  subprocess.run([installed(shell), '-n', scripts / shell], check=True)


def test_main_prints_the_script(scripts, capsys):
  assert completion.main(['fish']) == 0
  assert capsys.readouterr().out == (scripts / 'fish').read_text() + '\n'
