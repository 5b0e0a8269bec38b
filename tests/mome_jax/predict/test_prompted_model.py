"""Devices by name."""

import pytest

from mome_jax import predict


@pytest.mark.parametrize(
  'name',
  ['gpu:-1', 'cpu:-1', 'cpu:1.5', 'cpu:9', 'cpu:', ':0', '', 'cpu:+0', 'cpu: 0', 'cpu:0:0', 'npu'],
)
def test_devices_that_do_not_exist_are_named(name):
  with pytest.raises(predict.PredictError) as error:
    predict.find_devices(name)
  assert str(error.value) == f'--device {name}: no such device; there is cpu:0, cpu'


def test_devices():
  assert predict.find_devices(None) is None
  for name in ('cpu', 'cpu:0'):
    [device] = predict.find_devices(name)
    assert (device.platform, device.id) == ('cpu', 0)
