"""Requirements: declared in pyproject.toml, pinned to tested versions in requirements*.txt."""

import importlib.metadata
import pathlib
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import mome_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
EXTRAS = PROJECT['optional-dependencies']
# Which file pins what; each includes the ones before it by -r.
FILES = {
  'requirements-predict.txt': PROJECT['dependencies'],
  'requirements-serve.txt': EXTRAS['serve'],
  'requirements-grain.txt': EXTRAS['grain'],
  'requirements.txt': EXTRAS['train'],
  'requirements-beam.txt': EXTRAS['beam'],
}
SYSTEMS = [
  {
    'python_version': version,
    'python_full_version': f'{version}.1',
    'sys_platform': system,
    'platform_machine': machine,
  }
  for version in ('3.11', '3.12', '3.13')
  for system, machine in (('linux', 'x86_64'), ('linux', 'aarch64'), ('darwin', 'arm64'))
]


def pins(file, environment):
  """{name: pinned version} of one file, without those it includes."""
  lines = (line.partition(' #')[0].strip() for line in (ROOT / file).read_text().splitlines())
  result = {}
  for line in lines:
    if line and not line.startswith(('#', '-r')):
      pin = Requirement(line)
      if pin.marker is None or pin.marker.evaluate(environment):
        [exact] = pin.specifier
        assert exact.operator == '==', line
        name = canonicalize_name(pin.name)
        assert name not in result, f'{file} pins {name} twice'
        result[name] = exact.version
  return result


def declared(lines, environment):
  """{name: Requirement} of pyproject.toml for one system, without the project's own extras."""
  needs = map(Requirement, lines)
  needs = [one for one in needs if one.marker is None or one.marker.evaluate(environment)]
  return {canonicalize_name(one.name): one for one in needs if one.name != PROJECT['name']}


@pytest.mark.parametrize(
  'environment',
  SYSTEMS,
  ids=lambda e: f'{e["python_version"]} {e["sys_platform"]} {e["platform_machine"]}',
)
@pytest.mark.parametrize('file', FILES)
def test_every_requirement_has_a_pin_that_satisfies_it(file, environment):
  needs, exact = declared(FILES[file], environment), pins(file, environment)
  assert exact.keys() == needs.keys()
  for name, need in needs.items():
    assert need.specifier.contains(Version(exact[name]), prereleases=True), f'{need}: {exact[name]}'


@pytest.mark.parametrize('environment', SYSTEMS[:3], ids=lambda e: e['platform_machine'])
def test_tensorflow_is_asked_for_where_it_has_wheels(environment):
  has_wheels = environment['platform_machine'] == 'x86_64'
  assert ('tensorflow-cpu' in declared(EXTRAS['train'], environment)) == has_wheels


def test_each_file_includes_the_one_it_extends():
  for file, base in (('requirements-serve.txt', 'requirements-predict.txt'),
                     ('requirements-grain.txt', 'requirements-predict.txt'),
                     ('requirements-napari.txt', 'requirements-predict.txt'),
                     ('requirements-dev.txt', 'requirements-napari.txt'),
                     ('requirements.txt', 'requirements-grain.txt'),
                     ('requirements-beam.txt', 'requirements.txt'),
                     ('requirements-aot.txt', 'requirements.txt'),
                     ('requirements-dev.txt', 'requirements.txt')):  # fmt: skip
    assert f'-r {base}' in (ROOT / file).read_text().splitlines()


def test_the_extra_for_tpus_has_the_jax_of_prediction():
  [tpu] = map(Requirement, EXTRAS['tpu'])
  [jax] = [one for one in map(Requirement, PROJECT['dependencies']) if one.name == 'jax']
  assert tpu.name == 'jax' and tpu.extras == {'tpu'} and tpu.specifier == jax.specifier


def test_the_extra_for_published_weights_has_the_torch_of_the_tests():
  [torch] = map(Requirement, EXTRAS['weights'])
  assert torch.specifier.contains(pins('requirements-dev.txt', {})['torch'])


def test_the_extra_for_sentence_encoders_has_the_libraries_of_the_tests():
  exact = pins('requirements-dev.txt', {})
  for need in map(Requirement, EXTRAS['sentence']):
    assert need.specifier.contains(exact[need.name]), need


def test_the_extra_for_buckets_has_the_library_of_the_tests():
  [gcsfs] = map(Requirement, EXTRAS['gcs'])
  assert gcsfs.specifier.contains(pins('requirements-dev.txt', SYSTEMS[0])['gcsfs'])


@pytest.mark.parametrize('extra', ['hub', 'itk', 'node'])
def test_the_extras_for_formats_have_the_libraries_of_the_tests(extra):
  exact = pins('requirements-dev.txt', {})
  for need in map(Requirement, EXTRAS[extra]):
    assert need.specifier.contains(exact[canonicalize_name(need.name)]), need


def test_the_napari_plugin_has_the_libraries_of_the_tests_and_no_qt_of_its_own():
  text = (ROOT / 'integrations' / 'napari' / 'pyproject.toml').read_text()
  needs = {
    one.name: one for one in map(Requirement, tomllib.loads(text)['project']['dependencies'])
  }
  exact = pins('requirements-napari.txt', {})
  assert needs.pop('mome-jax').specifier.contains(mome_jax.__version__)
  assert exact.keys() - needs.keys() == {'pyqt6', 'pyqt6-qt6'}
  for name, need in needs.items():
    assert need.specifier.contains(exact[name]), need


def test_the_compiler_for_tpus_is_the_one_of_this_jax():
  [libtpu] = [
    one
    for one in map(Requirement, importlib.metadata.requires('jax'))
    if one.name == 'libtpu' and one.marker.evaluate({'extra': 'tpu'})
  ]
  assert libtpu.specifier.contains(pins('requirements-aot.txt', {})['libtpu'])
