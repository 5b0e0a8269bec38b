"""Published segmentation checkpoints: names, what stays random, and the command line."""

import jax
import numpy as np
import pytest
import torch
from monai.networks.nets import swin_unetr as monai

from mome_jax import checkpoint, weights
from mome_jax.configs import paper_swin_unetr
from mome_jax.errors import ConfigError
from mome_jax.text import prompts
from mome_jax.text.vectors import TextVectors
from mome_jax.training import config_check
from mome_jax.weights import command, networks


@pytest.fixture(scope='module')
def swin_state():
  """MONAI's Swin UNETR of feature size 12 with one channel, and the indices of older files."""
  torch.manual_seed(0)
  model = monai.SwinUNETR(in_channels=1, out_channels=32, feature_size=12)
  state = {key: value.numpy() for key, value in model.state_dict().items()}
  assert any(key.endswith('relative_position_index') for key in state)
  return state


def universal(swin_state, classes=31):
  """The published whole network around it."""
  rng = np.random.default_rng(0)
  shapes = {
    'GAP.0.weight': (192,), 'GAP.0.bias': (192,),
    'GAP.3.weight': (256, 192, 1, 1, 1), 'GAP.3.bias': (256,),
    'text_to_vision.weight': (256, 512), 'text_to_vision.bias': (256,),
    'controller.weight': (153, 512, 1, 1, 1), 'controller.bias': (153,),
    'precls_conv.0.weight': (12,), 'precls_conv.0.bias': (12,),
    'precls_conv.2.weight': (8, 12, 1, 1, 1), 'precls_conv.2.bias': (8,),
    'organ_embedding': (classes, 512),
  }  # fmt: skip
  head = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
  return {f'backbone.{name}': value for name, value in swin_state.items()} | head


def test_universal_swin_unetr(swin_state):
  state = universal(swin_state)
  converted = networks.universal_swin_unetr(state)
  assert converted.config.model.backbone.merging == 'cum'
  assert converted.config.model.experts == 'finest'
  assert len(converted.config.classes) == 31
  np.testing.assert_array_equal(converted.text, state['organ_embedding'])
  alone = weights.convert('monai_swin_unetr', swin_state)['params']
  jax.tree.map(
    np.testing.assert_array_equal, converted.variables['params']['backbone'], alone['backbone']
  )
  np.testing.assert_array_equal(
    converted.variables['params']['text']['kernel'], state['text_to_vision.weight'].T
  )


def test_the_encoder_alone_lists_what_stays_random(swin_state):
  prefix = 'swinViT.'
  encoder = {k.removeprefix(prefix): v for k, v in swin_state.items() if k.startswith(prefix)}
  encoder = {
    'module.' + k.replace('.linear1.', '.fc1.').replace('.linear2.', '.fc2.'): v
    for k, v in encoder.items()
  }
  heads = {'norm.weight': (192,), 'rotation_head.bias': (4,), 'contrastive_head.weight': (512, 192)}
  encoder |= {f'module.{name}': np.zeros(shape, np.float32) for name, shape in heads.items()}
  alone = weights.convert('monai_swin_vit', encoder)['params']['backbone']
  assert alone.keys() == {'swin'}
  whole = weights.convert('monai_swin_unetr', swin_state)['params']['backbone']
  jax.tree.map(np.testing.assert_array_equal, alone['swin'], whole['swin'])
  stripped = {name.removeprefix('module.'): value for name, value in encoder.items()}
  fresh = networks.monai_swin_vit(stripped).fresh
  assert {path.split('/')[1] for path in fresh} == whole.keys() - {'swin'}
  stripped.pop('layers2.0.blocks.1.mlp.fc1.weight')
  with pytest.raises(weights.WeightsError, match=r'missing: swinViT\.layers2\.0\.blocks\.1\.mlp'):
    weights.convert('monai_swin_vit', stripped)


def test_the_merging_order_is_an_argument(swin_state):
  converted = networks.monai_swin_unetr(swin_state, merging='monai_v2')
  assert converted.config.model.backbone.merging == 'monai_v2'
  with pytest.raises(weights.WeightsError, match="merging 'v3'; known: cum, monai, monai_v2"):
    weights.convert('monai_swin_unetr', swin_state, merging='v3')


@pytest.mark.parametrize(
  ('source', 'prefix'), [('monai_swin_unetr', ''), ('monai_swin_vit', 'swinViT.')]
)
def test_convolutions_before_the_stages_are_refused_by_name(swin_state, source, prefix):
  model = monai.SwinTransformer(1, 12, (7,) * 3, (2,) * 3, (2,) * 4, (3, 6, 12, 24), use_v2=True)
  stage = {f'swinViT.{key}': value.numpy() for key, value in model.state_dict().items()}
  state = {key.removeprefix(prefix): value for key, value in (swin_state | stage).items()}
  with pytest.raises(weights.WeightsError, match='weights of a Swin UNETR with use_v2=True'):
    weights.convert(source, state, merging='monai')


def test_a_published_file_becomes_a_model_folder(swin_state, tmp_path, capsys):
  state = universal(swin_state)
  tensors = {f'module.{name}': torch.from_numpy(value) for name, value in state.items()}
  torch.save({'net': tensors, 'epoch': 3, 'optimizer': {}}, tmp_path / 'swin.pth')
  output = tmp_path / 'model'
  line = ['--source=universal_swin_unetr', f'--checkpoint={tmp_path / "swin.pth"}']
  command.main([*line, f'--output={output}'])
  variables = weights.convert('universal_swin_unetr', state)
  count = sum(leaf.size for leaf in jax.tree.leaves(variables))
  assert f'{count:,} parameters' in capsys.readouterr().out
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  model = checkpoint.load_model(output, device)
  jax.tree.map(np.testing.assert_array_equal, model.params['model'], variables['params'])
  assert model.config.model.backbone.to_dict() == {
    'name': 'swin_unetr', 'size': 'tiny', 'merging': 'cum',
  }  # fmt: skip
  vectors = TextVectors.load(output / checkpoint.TEXT_VECTORS)
  embedded = vectors(prompts.default_prompts(model.config.classes))
  np.testing.assert_array_equal(embedded, state['organ_embedding'])


def test_text_vectors_may_come_alone(swin_state, tmp_path, capsys):
  state = universal(swin_state, classes=32)
  vectors = state.pop('organ_embedding').astype(np.float16)
  torch.save({k: torch.from_numpy(v) for k, v in state.items()}, tmp_path / 'swin.pth')
  torch.save(torch.from_numpy(vectors), tmp_path / 'text.pth')
  line = ['--source=universal_swin_unetr', f'--checkpoint={tmp_path / "swin.pth"}']
  line.append(f'--output={tmp_path / "model"}')
  assert command.main(line) == 1
  assert 'has no text vectors' in capsys.readouterr().err
  assert command.main([*line, f'--text_vectors={tmp_path / "text.pth"}']) == 0
  written = TextVectors.load(tmp_path / 'model' / checkpoint.TEXT_VECTORS)
  np.testing.assert_array_equal(written.embeddings, vectors.astype(np.float32))


def test_the_command_line_refuses_what_does_not_belong_together(tmp_path, capsys):
  line = ['--source=t5', '--checkpoint=missing', f'--output={tmp_path}']
  assert command.main(line) == 1
  assert capsys.readouterr().err.startswith('error: missing: no checkpoint there')
  with pytest.raises(SystemExit) as error:
    command.main([*line, '--merging=cum'])
  assert error.value.code == 2
  with pytest.raises(SystemExit) as error:  # no tensor tells it, and the wrong one fits too
    command.main(['--source=monai_swin_vit', '--checkpoint=x', '--output=y'])
  assert error.value.code == 2 and 'needs --merging' in capsys.readouterr().err


def test_a_run_joins_neighbours_in_the_order_of_its_start(swin_state, tmp_path):
  torch.save({k: torch.from_numpy(v) for k, v in swin_state.items()}, tmp_path / 'swin.pt')
  line = ['--source=monai_swin_unetr', f'--checkpoint={tmp_path / "swin.pt"}', '--merging=cum']
  assert command.main([*line, f'--output={tmp_path / "start"}']) == 0
  config = paper_swin_unetr.get_config()
  config.init.checkpoint = str(tmp_path / 'start')
  with pytest.raises(ConfigError, match="the order 'cum', model.backbone.merging is 'monai'"):
    config_check.check(config, data=False)
  config.model.backbone.merging = 'cum'
  config_check.check(config, data=False)
