"""What stands around the code: workflows, issue forms, hooks, citation, versions."""

import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import documented
import pytest
import yaml

import mome_jax
from input_pipeline import sources
from mome_jax.reproduce import families

ROOT = pathlib.Path(__file__).resolve().parents[2]
GITHUB = ROOT / '.github'
WORKFLOWS = sorted((GITHUB / 'workflows').glob('*.yml'))
FORMS = sorted((GITHUB / 'ISSUE_TEMPLATE').glob('*.yml'))
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


def run(*arguments):
  done = subprocess.run(
    [sys.executable, '-m', *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout + done.stderr


def test_yaml_is_clean():
  hooks = ROOT / '.pre-commit-config.yaml'
  run('yamllint', '--strict', *WORKFLOWS, *FORMS, hooks, 'mkdocs.yml', 'CITATION.cff')


@pytest.mark.parametrize(
  ('schema', 'files'),
  [
    ('github-workflows', WORKFLOWS),
    ('github-issue-forms', [form for form in FORMS if form.stem != 'config']),
    ('github-issue-config', [GITHUB / 'ISSUE_TEMPLATE/config.yml']),
    ('citation-file-format', [ROOT / 'CITATION.cff']),
  ],
)
def test_files_are_what_their_readers_expect(schema, files):
  assert files
  options = ['--builtin-schema', f'vendor.{schema}', '--force-filetype', 'yaml']
  run('check_jsonschema', *options, *files)


@pytest.mark.parametrize('path', WORKFLOWS, ids=lambda path: path.stem)
def test_commands_of_a_workflow_exist(path, monkeypatch):
  for job in yaml.safe_load(path.read_text())['jobs'].values():
    called = job.get('uses', '')
    assert not called.startswith('./') or (ROOT / called).is_file()
    for step in job.get('steps', ()):
      for line in step.get('run', '').splitlines():
        words = shlex.split(line)
        ours = words[:1] in (['make'], ['mome'], ['pip'], ['pre-commit']) or words[:2] == [
          'python',
          '-m',
        ]
        if ours and not set('*') & set(line):
          documented.understand(words, monkeypatch)


def test_bug_reports_ask_for_the_manifest():
  for name in ('bug', 'wrong_mask'):
    form = yaml.safe_load((GITHUB / f'ISSUE_TEMPLATE/{name}.yml').read_text())
    [field] = [part for part in form['body'] if part.get('id') == 'manifest']
    assert field['validations']['required']


def test_hooks_have_the_versions_of_the_tests():
  pins = {}
  for name in ('dev', 'docs'):
    text = (ROOT / f'requirements-{name}.txt').read_text()
    pins |= dict(re.findall(r'^([\w-]+)==([\w.]+)', text, flags=re.MULTILINE))
  hooks = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos']
  used = {hook['repo'].split('/')[-1].removesuffix('-pre-commit'): hook['rev'] for hook in hooks}
  assert len(used) == 4
  assert {name: rev.removeprefix('v') for name, rev in used.items()} == {n: pins[n] for n in used}


def test_one_version():
  version = mome_jax.__version__
  assert 'version' in PROJECT['dynamic'] and 'version' not in PROJECT
  assert yaml.safe_load((ROOT / 'CITATION.cff').read_text())['version'] == version
  assert f'## [{version}]' in (ROOT / 'CHANGELOG.md').read_text()


def test_tested_pythons_are_the_declared_ones():
  declared = {c.split(' :: ')[-1] for c in PROJECT['classifiers'] if 'Python :: 3.' in c}
  workflow = yaml.safe_load((GITHUB / 'workflows/ci.yml').read_text())
  assert set(workflow['jobs']['test']['strategy']['matrix']['python']) == declared


def test_what_configs_say_of_chips_is_what_the_benchmarks_have():
  table = (ROOT / 'docs/benchmarks.md').read_text()
  said = {}
  for path in (ROOT / 'mome_jax/configs').glob('*.py'):
    text = ' '.join(path.read_text().split())
    if match := re.search(r'([\d.]+) of the 16 GiB of a chip and ([\d.]+) TFLOP a patch', text):
      said[path.stem] = match.groups()
  assert len(said) == 3
  for name, (memory, work) in said.items():
    row = re.search(rf'^\| {name} \| v5e \| 1 \|.*', table, flags=re.MULTILINE)[0].split(' | ')
    assert row[-2] == memory and f'{float(row[9]):.1f}' == work, name


def test_licences_and_scans_of_the_downloads_are_those_of_their_sources():
  page = (ROOT / 'docs/how-to/reproduce.md').read_text(encoding='utf-8')
  rows = re.findall(
    r'^\| (`\w+`[^|]*)\|[^|]*\| (\d+) \|[^|]*\| ([^|]+) \|$', page, flags=re.MULTILINE
  )
  named = []
  for first, scans, licence in rows:
    members = [sources.get_source(name) for name in re.findall(r'`(\w+)`', first)]
    assert {source.licence for source in members} == {licence}, first
    assert sum(source.expected for source in members) == int(scans), first
    named += [source.name for source in members]
  assert sorted(named) == sorted(families.SOURCES)


def test_readme_stays_short():
  lines = (ROOT / 'README.md').read_text().splitlines()
  assert len(lines) <= 150
  assert max(map(len, lines)) <= 120
