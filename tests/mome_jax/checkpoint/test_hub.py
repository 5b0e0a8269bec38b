"""Models in folders as on the Hugging Face Hub, and from there."""

import os
import subprocess
import sys

import jax
import ml_dtypes
import model_hub
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from input_pipeline.errors import UserError
from mome_jax import checkpoint, export, shipped
from mome_jax.checkpoint import hub
from mome_jax.checkpoint.errors import CheckpointError
from mome_jax.configs import demo
from mome_jax.training import config_check

DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
KERNEL = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


@pytest.fixture
def model(tmp_path):
  config = demo.get_config()
  params = {'model': {'a': {'kernel': KERNEL}}, 'text': {'b': np.ones((), np.float32)}}
  checkpoint.save_model(tmp_path / 'model', config, params)
  return tmp_path / 'model'


def exported(model, folder, *options):
  arguments = ['--checkpoint', str(model), '--output', str(folder), '--format', 'hf', *options]
  assert export.main(arguments) == 0
  return folder


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_folder_for_the_hub(model, dtype, tmp_path):
  out = exported(model, tmp_path / 'out', '--dtype', dtype, '--licence', 'mit')
  stored = safetensors.torch.load_file(out / 'model.safetensors')  # another reader
  assert stored.keys() == {'model.a.kernel', 'text.b'}
  kernel = stored['model.a.kernel']
  assert kernel.dtype == getattr(torch, dtype)
  expected = KERNEL.astype(dtype if dtype == 'float32' else ml_dtypes.bfloat16).astype(np.float32)
  np.testing.assert_array_equal(kernel.float().numpy(), expected)
  again = checkpoint.load_model(out, DEVICE)
  np.testing.assert_array_equal(again.params['model']['a']['kernel'], expected)
  assert again.params['model']['a']['kernel'].dtype == np.float32
  assert again.params['text']['b'].shape == ()
  assert again.config.classes == demo.get_config().classes
  assert sorted(os.listdir(out)) == [
    'README.md', 'checksums.json', 'config.json', 'model.safetensors', 'tokenizer.model',
  ]  # fmt: skip


def test_a_run_starts_from_such_a_folder_and_not_in_it(model, tmp_path):
  out = exported(model, tmp_path / 'out')
  assert checkpoint.has_text_encoder(out)
  config = demo.get_config()
  config.init.checkpoint = str(out)
  config_check.check(config, data=False)
  with pytest.raises(CheckpointError, match='is a model folder, not the workdir of a run'):
    checkpoint.check_same_run(out, config)
  (out / 'model.safetensors').write_bytes(b'short')
  with pytest.raises(CheckpointError, match=r'model.safetensors: cannot be read'):
    checkpoint.has_text_encoder(out)


def test_the_card_has_front_matter_and_keeps_its_text(model, tmp_path):
  out = exported(model, tmp_path / 'out', '--licence', 'apache-2.0')
  text = (out / 'README.md').read_text()
  _, front, body = text.split('---\n', 2)
  fields = yaml.safe_load(front)
  assert fields['license'] == 'apache-2.0' and fields['library_name'] == 'mome-jax'
  assert fields['pipeline_tag'] == 'image-segmentation' and 'jax' in fields['tags']
  assert f'| classes | {", ".join(demo.get_config().classes)} |' in body
  assert ', 13 parameters |' in body
  (out / 'README.md').write_text(text.replace('# out', '# My organs'))
  again = exported(out, tmp_path / 'again')
  written = (again / 'README.md').read_text()
  assert written.count('---\n') == 2 and '# My organs' in written
  assert fields_of(again) == fields
  assert fields_of(exported(out, tmp_path / 'other', '--licence', 'mit'))['license'] == 'mit'


def fields_of(folder):
  """The front matter of a folder's card, read by another reader."""
  return yaml.safe_load((folder / 'README.md').read_text().split('---\n')[1])


LICENCES = {
  'license: cc-by-nc-4.0': {'license': 'cc-by-nc-4.0'},
  'license: other\nlicense_name: ours\nlicense_link: LICENSE': {
    'license': 'other', 'license_name': 'ours', 'license_link': 'LICENSE',
  },
  'license:\n- mit\n- bsd': {'license': ['mit', 'bsd']},
  'license: >-\n  cc0-1.0': {'license': 'cc0-1.0'},
}  # fmt: skip


@pytest.mark.parametrize('end', ['\n', '\r\n'])
@pytest.mark.parametrize('lines', LICENCES)
@pytest.mark.parametrize('body', ['# Ours\n\n---\n', ''])
def test_what_a_card_says_is_kept_whoever_wrote_it(lines, end, body, model, tmp_path):
  card = f'---\ntags:\n- x\n{lines}\nlanguage: en\n---\n{body}'
  (model / 'README.md').write_bytes(card.removesuffix('\n').replace('\n', end).encode())
  out = exported(model, tmp_path / 'out')
  fields = fields_of(out)
  assert {name: fields[name] for name in fields if name.startswith('license')} == LICENCES[lines]
  assert (fields['language'], fields['tags']) == ('en', ['x'])
  assert (fields['library_name'], fields['pipeline_tag']) == ('mome-jax', 'image-segmentation')
  written = (out / 'README.md').read_text()
  assert ('# Ours' if body else '# out') in written and written.count('language') == 1


@pytest.mark.parametrize(('card', 'licence'), [
  ('# Ours\n', LICENCES['license: other\nlicense_name: ours\nlicense_link: LICENSE']),
  ('---\nlanguage: en\n---\n# Ours\n',
   LICENCES['license: other\nlicense_name: ours\nlicense_link: LICENSE']),
  ('---\nlicense: mit\n---\n# Ours\n', {'license': 'mit'}),  # and no name of another
])  # fmt: skip
def test_a_text_in_the_output_says_nothing_of_the_licence_of_the_model(
  card, licence, model, tmp_path
):
  (model / 'README.md').write_text(
    '---\nlicense: other\nlicense_name: ours\nlicense_link: LICENSE\n---\n# Model\n'
  )
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out/README.md').write_text(card)
  fields = fields_of(exported(model, tmp_path / 'out'))
  assert {name: fields[name] for name in fields if name.startswith('license')} == licence
  assert (tmp_path / 'out/README.md').read_text().endswith('---\n\n# Ours\n')


def test_fields_of_a_card_are_kept_however_they_are_written(model, tmp_path):
  (tmp_path / 'out').mkdir()
  front = """library_name: mome-jax  # of ours
# the data
"language": en
tags: [
  x,
  y
]
model-index:
- name: ours
"""
  (tmp_path / 'out/README.md').write_text(f'---\n{front}---\n')
  fields = fields_of(exported(model, tmp_path / 'out'))
  assert (fields['language'], fields['tags']) == ('en', ['x', 'y'])
  assert (fields['library_name'], fields['model-index']) == ('mome-jax', [{'name': 'ours'}])


def test_a_card_without_front_matter_says_no_licence(model, tmp_path):
  (model / 'README.md').write_text('---\nlicense: mit\n\nA line above, and no front matter.\n')
  out = exported(model, tmp_path / 'out')
  assert 'license' not in fields_of(out)
  assert 'no front matter' in (out / 'README.md').read_text()


def test_an_ensemble_for_the_hub(tmp_path):
  export.export_ensemble([shipped.MODEL] * 2, tmp_path / 'both', form='hf')
  members = checkpoint.members(tmp_path / 'both')
  assert [member.name for member in members] == ['model_0', 'model_1']
  checkpoint.load_model(members[1], DEVICE)
  assert (tmp_path / 'both' / 'README.md').read_text().startswith('---\n')


def test_an_ensemble_of_several_licences_is_told(tmp_path):
  one, two = (
    exported(shipped.MODEL, tmp_path / name, '--licence', name) for name in ('mit', 'cc-by-nc-4.0')
  )
  with pytest.raises(UserError, match='cc-by-nc-4.0; license: mit.*pass --licence'):
    export.export_ensemble([one, two], tmp_path / 'both', form='hf')
  export.export_ensemble([one, two], tmp_path / 'both', form='hf', licence='other')
  assert fields_of(tmp_path / 'both')['license'] == 'other'


def test_what_is_damaged_is_told(model, tmp_path):
  out = exported(model, tmp_path / 'out')
  data = (out / 'model.safetensors').read_bytes()
  (out / 'model.safetensors').write_bytes(data[:-5])
  with pytest.raises(CheckpointError, match='model.safetensors: cannot be read .*; get it again'):
    checkpoint.load_model(out, DEVICE)


def load(path, **environment):
  """(exit code, output) of a program that loads a model; the library reads its settings once."""
  code = (
    'import sys, jax; from mome_jax import checkpoint\n'
    'from mome_jax.errors import UserError\n'
    'device = jax.sharding.SingleDeviceSharding(jax.devices()[0])\n'
    'try: model = checkpoint.load_model(checkpoint.expand([sys.argv[1]])[0], device)\n'
    'except UserError as error: sys.exit(str(error))\n'
    "print(float(model.params['model']['a']['kernel'].sum()))\n"
  )
  done = subprocess.run(
    [sys.executable, '-c', code, path], capture_output=True, text=True, timeout=120,
    env=os.environ | {'HF_HUB_DISABLE_TELEMETRY': '1', 'JAX_PLATFORMS': 'cpu'} | environment,
  )  # fmt: skip
  return done.returncode, (done.stdout or done.stderr).strip().splitlines()[-1]


def test_a_model_from_the_hub(model, tmp_path):
  root = tmp_path / 'hub'
  exported(model, root / 'org' / 'net')
  (root / 'org' / 'net' / 'evil.bin').write_bytes(b'code')
  settings = {'HF_HOME': str(tmp_path / 'cache')}
  with model_hub.serving(root) as (url, asked):
    settings['HF_ENDPOINT'] = url
    code, told = load('hf:org/net', **settings)
    assert (code, float(told)) == (0, pytest.approx(KERNEL.sum(), rel=1e-5)), told
    assert not any('evil' in path for path in asked)
    code, told = load('hf:org/other@v1', **settings)
    assert code == 1 and told.startswith('hf:org/other@v1: cannot be fetched (')
  code, told = load('hf:org/net', HF_HUB_OFFLINE='1', **settings)  # from the cache
  assert (code, float(told)) == (0, pytest.approx(KERNEL.sum(), rel=1e-5)), told


def test_other_paths_are_no_models_of_the_hub(monkeypatch):
  for path in ('hf:name', 'hf:a/b/c', 'hf:org/name@', 'hf:../../x'):
    with pytest.raises(CheckpointError, match='expected hf:ORG/NAME'):
      hub.fetch(path)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(CheckpointError, match=r"pip install 'mome-jax\[hub\]'"):
    hub.fetch('hf:org/name')
