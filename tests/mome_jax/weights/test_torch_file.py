"""The reader of PyTorch files against files that torch.save wrote."""

import argparse
import os
import pathlib
import pickle
import sys

import numpy as np
import pytest
import torch

from mome_jax.weights import WeightsError, files, torch_file

DTYPES = (
  torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
  torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


@pytest.fixture(params=[True, False], ids=['zip', 'legacy'])
def save(request, tmp_path):
  def write(value):
    path = tmp_path / 'file.pth'
    torch.save(value, path, _use_new_zipfile_serialization=request.param)
    return path

  return write


def test_every_type(save):
  torch.manual_seed(0)
  tensors = {str(t): (5 * torch.randn(3, 4)).to(t) for t in DTYPES}
  loaded = torch_file.load(save(tensors))
  for name, tensor in tensors.items():
    assert str(loaded[name].dtype) == name.removeprefix('torch.')
    np.testing.assert_array_equal(loaded[name].astype(np.float64), tensor.double().numpy())


def test_views_parameters_and_scalars(save):
  base = torch.arange(24.0).reshape(2, 3, 4)
  values = {
    'base': base,
    'transposed': base.transpose(0, 2),
    'part': base[1, :, 1:3],
    'strided': base.flatten()[3::5],
    'parameter': torch.nn.Parameter(base + 1),
    'scalar': torch.tensor(3.0),
    'empty': torch.zeros(0, 3),
  }
  loaded = torch_file.load(save(values))
  for name, tensor in values.items():
    np.testing.assert_array_equal(loaded[name], tensor.detach().numpy(), err_msg=name)
    assert loaded[name].shape == tuple(tensor.shape)


def test_a_training_checkpoint(save):
  model = torch.nn.DataParallel(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)))
  optimizer = torch.optim.AdamW(model.parameters())
  checkpoint = {
    'net': model.state_dict(),
    'optimizer': optimizer.state_dict(),
    'epoch': 7,
    'args': argparse.Namespace(lr=1e-4),
    'best': np.float64(0.5),
  }
  path = save(checkpoint)
  assert torch_file.load(path)['epoch'] == 7
  state = files.read_tensors(path)
  expected = model.module.state_dict()
  assert state.keys() == expected.keys()
  for name, tensor in expected.items():
    np.testing.assert_array_equal(state[name], tensor.numpy())


class Command:
  """Pickles as a call of os.system."""

  def __init__(self, marker):
    self.marker = marker

  def __reduce__(self):
    return os.system, (f'touch {self.marker}',)


def test_code_in_a_file_is_not_run(save, tmp_path):
  marker = tmp_path / 'marker'
  path = save({'net': {'weight': torch.ones(2)}, 'command': Command(marker)})
  with pytest.raises(WeightsError, match=r'file\.pth: holds more than tensors \(posix\.system\)'):
    files.read_tensors(path)
  assert not marker.exists()
  torch.load(path, weights_only=False)  # the file does what it says, elsewhere
  assert marker.exists()


def test_objects_of_other_classes_are_refused_with_the_way_out(save):
  path = save({'net': {'weight': torch.ones(2)}, 'path': pathlib.PurePosixPath('x')})
  with pytest.raises(WeightsError, match=r'PurePosixPath.*save its state dict alone'):
    files.read_tensors(path)


def test_without_pytorch_the_extra_is_named(save, monkeypatch):
  path = save({'weight': torch.ones(2)})
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(WeightsError, match=r"file\.pth: .* pip install 'mome-jax\[weights\]'"):
    files.read_tensors(path)


def test_damaged_files(save, tmp_path):
  path = save({'weight': torch.randn(1000)})
  data = path.read_bytes()
  for length in (0, 5, 100, len(data) // 2, len(data) - 30):
    path.write_bytes(data[:length])
    with pytest.raises(ValueError, match=r'file\.pth: not a PyTorch checkpoint'):
      files.read_tensors(path)
  path.write_bytes(pickle.dumps({'weight': 1}, protocol=2))
  with pytest.raises(WeightsError, match='not a PyTorch checkpoint'):
    files.read_tensors(path)


def test_a_file_without_tensors_by_name(save):
  with pytest.raises(ValueError, match='holds no state dict'):
    files.read_tensors(save([torch.ones(2)]))
