"""Ahead-of-time compilation for devices that are not there: --mode=compile --topology=v5e:4x4."""

import importlib.metadata
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from input_pipeline.batches import spec
from mome_jax.errors import UserError, one_line
from mome_jax.inference import steps as inference_steps
from mome_jax.models import build_model
from mome_jax.runtime import compilation, jax_errors
from mome_jax.text import prompt_inputs
from mome_jax.text.t5 import build_text_encoder
from mome_jax.training import (
  hlo_traffic,
  optimizer,
  roofline,
  sharding,
  state,
  steps,
  text_start,
)
from mome_jax.training.flops import count_flops

# Number of chips -> the shape that a slice of so many has.
_FLAT = {'4': '2x2', '8': '2x4', '16': '4x4', '32': '4x8', '64': '8x8', '256': '16x16'}
_CUBES = {'4': '2x2x1', '8': '2x2x2', '16': '2x2x4', '32': '2x4x4', '64': '4x4x4'}
_SHAPES = {'v5e': _FLAT, 'v6e': _FLAT, 'v5p': _CUBES}
HERE = 'here'
_COLLECTIVES = r'(all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute)'
# Sizes in what XLA says: 36.00G, 5.2GiB, 17179869184 bytes.
_SIZE = r'\b(\d+(?:\.\d+)?) ?([KMGT]|bytes)(?:i?B)?\b'
_UNITS = {'bytes': 0, 'K': 10, 'M': 20, 'G': 30, 'T': 40}
_BETWEEN_SLICES = r'= ([^\n]*?) send\([^\n]*xla_megascale_runtime'


class TopologyError(UserError):
  """The topology is unknown or its compiler is absent; the message says which are known."""


class TooLargeError(UserError):
  """The compiler finds that a device cannot hold a program; the message has its words.

  Attributes:
    needs: bytes that it names, the most of several; 0 where it names none.
  """

  def __init__(self, message: str, needs: int):
    super().__init__(message)
    self.needs = needs


def compile_config(config: ConfigDict, topology: str) -> dict:
  """Compiles what trains and what predicts by a config for the chips of a topology.

  Args:
    config: see `configs/base.py`.
    topology: 'v5e:4x4', 'v5p:2x2x2', 'v6e:4x4' and the like, compiled by libtpu without a TPU;
      '2xv5e:4x4' for two slices of them; 'cpu:8' for so many virtual devices of this machine; or
      'here' for those that this machine has. Before anything else uses JAX.

  Returns:
    What can be written as JSON: `compiler`, `effort`, `topology`, `chip`, `chips`, `slices`,
    `mesh`, `parameters`, `hbm_limit`, `chip_hours`, and for the step `train`, and the steps `see`
    (a batch of windows) and `read` (four prompts there) of a prediction on one chip: `hbm` with
    `arguments`, `outputs`, `reused`, `temporaries` and `peak` (bytes of one chip), `fits`, `flops`
    (of one step on all chips; products and convolutions), `flops_per_patch`, `patches_per_chip`,
    `bytes_accessed` (of one chip, as XLA counts it: loop bodies once), `traffic` (bytes a patch of
    one chip, loop bodies as often as they run: `total`, and `kinds` by `hlo_traffic.by_kind`),
    `roofline` (of one step on one chip, see `roofline.bound`; None where no peak is known),
    `collectives` (kind -> `count` and output `bytes` of one chip, loop bodies once) and
    `compile_seconds`. `effort` is jax_exec_time_optimization_effort, from -1 to 1; at -1 the TPU
    compiler is far quicker, and the temporaries are an upper bound. Of several slices,
    `collectives` has `between slices` too. `chip_hours` is what all `train.steps` cost at least, at
    the `roofline` of one; None where there is none. A step of a prediction that the compiler gives
    up on for its memory has `fits`, False, and `error` alone.

  Raises:
    TopologyError: see there.
    TooLargeError: if the compiler gives up on the train step for its memory.
    ConfigError: if the text encoder to start from is not the one that the config describes.
  """
  devices, platform = find_devices(topology)
  config = config.copy_and_resolve_references()
  text_start.complete(config)
  mesh, limit = sharding.make_mesh(config.mesh, devices), hbm_gib(topology)
  train, params = trace_train_step(config, mesh)
  report = {
    'compiler': compiler(platform),
    'effort': jax.config.jax_exec_time_optimization_effort,  # type: ignore[attr-defined]  # set at run time
    'topology': topology,
    'chip': devices[0].device_kind,
    'chips': len(devices),
    'slices': len(sharding.slices_of(devices)),
    'mesh': dict(mesh.shape),
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
    'hbm_limit': limit and limit * 2**30,
    'train': measure(
      train, platform, topology, patches=config.train.batch_size, devices=len(devices)
    ),
  }
  bound = report['train']['roofline']
  report['chip_hours'] = bound and roofline.chip_hours(bound, len(devices), config.train.steps)
  # Every host predicts by itself, window by window: one chip is the unit.
  alone = sharding.local_mesh(devices[:1])
  windows = max(config.evaluation.batch_size, 1)
  for name, traced in _trace_prediction(config, alone, params, platform).items():
    try:
      report[name] = measure(traced, platform, topology, patches=windows, devices=1)
    except TooLargeError as error:  # of the train step everything is known by now
      report[name] = {'fits': False, 'error': str(error)}
  return report


def trace_train_step(config: ConfigDict, mesh: Mesh) -> tuple[jax.stages.Traced, Any]:
  """The whole train step of a config, traced for a mesh whose devices need not exist.

  Returns:
    A `jax.stages.Traced`, and the parameters' shapes and shardings.
  """
  model = build_model(config.model)
  text_encoder = None if prompt_inputs.is_frozen(config.text) else build_text_encoder(config.text)
  transformation = optimizer.make_optimizer(config.train)
  abstract = state.abstract_state(config, mesh, model, text_encoder, transformation)
  table = np.zeros((256, len(config.classes)), bool)  # its values need the data, its shape does not
  train_step = steps.jit_train_step(config, model, text_encoder, transformation, abstract, table)
  with jax.set_mesh(mesh):  # nothing can run in here: the devices do not exist
    traced = train_step.trace(abstract, *input_shapes(config, mesh))
  return traced, abstract.params


def hbm_gib(topology: str) -> int | None:
  """Memory of one chip of a topology, GiB; None where it is none of a TPU."""
  chip = find_chip(topology)
  return chip and chip.hbm_gib


def find_chip(topology: str) -> roofline.Chip | None:
  """What one chip of a topology can do; None where it is none of a TPU."""
  return roofline.CHIPS.get(_split(topology)[1])


def _split(topology: str) -> tuple[int, str, str]:
  """'2xv5e:4x4' -> 2, 'v5e', '4x4'."""
  slices, word = re.fullmatch(r'(?:(\d+)x)?(.*)', topology, re.DOTALL).groups()  # type: ignore[union-attr]  # it fits all
  family, _, size = word.partition(':')
  return int(slices or 1), family, _SHAPES.get(family, {}).get(size, size)


def find_devices(topology: str) -> tuple[Sequence[Any], str]:
  """The devices of a topology, as `compile_config` takes it, and their platform.

  Raises:
    TopologyError: if the topology is unknown, or its compiler is absent.
  """
  if topology == HERE:
    return jax.devices(), jax.default_backend()
  slices, family, size = _split(topology)
  if family == 'cpu' and size.isdigit() and slices == 1:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', int(size))
    return jax.devices(), 'cpu'
  if slices < 1 or family not in roofline.CHIPS or not re.fullmatch(r'\d+x\d+(x\d+)?', size):
    raise TopologyError(
      f'--topology={topology}: expected {HERE}, cpu:N or one of {", ".join(roofline.CHIPS)} with '
      f'a shape or a number of chips ({", ".join(_FLAT)}), as v5e:4x4, or 2xv5e:4x4 for two slices'
    )
  # No TPU is here: ask nobody for its metadata, run nothing on it, and lock nobody out.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  jax.config.update('jax_platforms', 'cpu')
  from jax.experimental import topologies

  try:
    several = {'num_slices': slices} if slices > 1 else {}
    chips = topologies.get_topology_desc(f'{family}:{size}', platform='tpu', **several)
    return chips.devices, 'tpu'
  except (RuntimeError, ValueError, NotImplementedError) as error:
    reason = str(error).split('\n')[0]
    raise TopologyError(
      f'--topology={topology}: {reason}; the TPU compiler comes with '
      'pip install -r requirements-aot.txt'
    ) from error


def compiler(platform: str) -> str:
  """Versions of what compiles."""
  packages = ['jax', 'libtpu'] if platform == 'tpu' else ['jax', 'jaxlib']
  return ', '.join(f'{name} {importlib.metadata.version(name)}' for name in packages)


def input_shapes(config: ConfigDict, mesh: Mesh) -> tuple[dict[str, Any], dict[str, Any]]:
  """Batch and prompts of a training step, as ShapeDtypeStructs with shardings."""
  return _batch(config, mesh), _prompts(config, mesh)


def _batch(config, mesh):
  sharding.check_batch(mesh, config)
  windows, classes = len(config.data.windows), len(config.classes)
  shapes = spec.shapes(config.data.patch, windows=windows, classes=classes)
  split = lambda name: sharding.batch_spec(name, spatial=config.mesh.spatial)
  return {
    name: jax.ShapeDtypeStruct(
      (config.train.batch_size, *shape),
      spec.BATCH[name].dtype,
      sharding=NamedSharding(mesh, split(name)),
    )
    for name, shape in shapes.items()
  }


def _prompts(config, mesh):
  where = NamedSharding(mesh, sharding.REPLICATED)
  place = lambda *shape_and_dtype: jax.ShapeDtypeStruct(*shape_and_dtype, sharding=where)
  counts = dict.fromkeys(('sampled', 'default'), len(config.classes))
  negatives = prompt_inputs.count_negatives(config)
  if negatives:
    counts['negative'] = negatives

  def inputs(rows):
    if prompt_inputs.is_frozen(config.text):
      return {'vectors': place((rows, config.text.d_model), np.float32)}
    shape = (rows, config.text.max_length)
    return {'ids': place(shape, np.int32), 'mask': place(shape, np.bool_)}

  return {kind: inputs(rows) for kind, rows in counts.items()}


def _trace_prediction(
  config: ConfigDict, mesh: Mesh, params: Any, platform: str
) -> dict[str, jax.stages.Traced]:
  """The two programs of a prediction, `see` and `read`, for one device."""
  where = NamedSharding(mesh, sharding.REPLICATED)
  place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
  params = jax.tree.map(place, params)
  evaluation, width = config.evaluation, config.text.d_model
  shape = (max(evaluation.batch_size, 1), *evaluation.window, len(config.data.windows))
  windows, trained, prompts = (
    place(jax.ShapeDtypeStruct(dims, np.float32))
    for dims in (shape, (len(config.classes), width), (prompt_inputs.BUCKET, width))
  )
  model = build_model(config.model)
  see = compilation.jit(inference_steps.make_see_step(model), platform)
  read = compilation.jit(inference_steps.make_read_step(model), platform)
  with jax.set_mesh(mesh):
    seeing = see.trace(params, windows, trained)
    sight = jax.tree.map(place, jax.eval_shape(see, params, windows, trained))
    return {'see': seeing, 'read': read.trace(params, sight, prompts)}


def measure(
  traced: jax.stages.Traced, platform: str, topology: str, *, patches: int, devices: int
) -> dict:
  """Compiles a step and says what it needs: `train`, `see` or `read` of `compile_config`.

  Args:
    traced: the step.
    platform: as of `find_devices`.
    topology: see there.
    patches: of a step, on all devices.
    devices: how many the step runs on.
  """
  chip = find_chip(topology)
  start = time.perf_counter()
  compiled = compile_traced(traced, platform)
  seconds = time.perf_counter() - start
  hbm, hlo = memory(compiled), compiled.as_text() or ''
  flops, share = count_flops(traced.jaxpr, platform), patches / devices
  kinds = hlo_traffic.by_kind(hlo)
  traffic = sum(kinds.values())
  return {
    'hbm': hbm,
    'fits': None if chip is None else hbm['peak'] <= chip.hbm_gib * 2**30,
    'flops': flops,
    'flops_per_patch': flops / patches,
    'patches_per_chip': share,
    'bytes_accessed': (compiled.cost_analysis() or {}).get('bytes accessed'),
    'traffic': {
      'total': traffic / share,
      'kinds': {kind: size / share for kind, size in kinds.items()},
    },
    'roofline': chip and roofline.bound(chip, flops / devices, traffic),
    'collectives': collectives(hlo),
    'compile_seconds': round(seconds, 1),
  }


def compile_traced(traced: jax.stages.Traced, platform: str) -> jax.stages.Compiled:
  """Compiles a program for the devices that it was traced for.

  Raises:
    TooLargeError: see there.
  """
  # Only devices that are not there must be named: 'gpu' is no name for a lowering, JAX would take
  # the rules of no platform and donate nothing.
  platforms = ('tpu',) if platform == 'tpu' else None
  try:
    return traced.lower(lowering_platforms=platforms).compile()
  except jax_errors.KINDS as error:
    if not jax_errors.is_out_of_memory(error):
      raise
    text = str(error)
    sizes = [float(n) * 2 ** _UNITS[unit] for n, unit in re.findall(_SIZE, text)]
    raise TooLargeError(
      f'{traced.fun_name}: {one_line(text)[:300]}; lower train.batch_size or data.patch (of a '
      'prediction evaluation.batch_size or evaluation.window), or set model.remat or mesh.fsdp',
      int(max(sizes, default=0)),
    ) from error


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
  """Bytes of one device that a program needs: 'peak', and what it is made of."""
  sizes: Any = compiled.memory_analysis()
  parts = {
    'arguments': sizes.argument_size_in_bytes,
    'outputs': sizes.output_size_in_bytes,
    'reused': sizes.alias_size_in_bytes,  # outputs that live where donated arguments were
    'temporaries': sizes.temp_size_in_bytes,
  }
  peak = parts['arguments'] + parts['outputs'] - parts['reused'] + parts['temporaries']
  return {**parts, 'peak': peak}


def collectives(hlo: str) -> dict[str, dict[str, int]]:
  """Exchanges in an HLO program: kind -> how many, and the bytes of their results.

  What goes over the network between TPU slices has the kind 'between slices'.
  """
  exchanges: dict[str, dict[str, int]] = {}
  for shape, kind, start in re.findall(rf'= (.*?) {_COLLECTIVES}(-start)?\(', hlo):
    sizes = _sizes(shape)
    entry = exchanges.setdefault(kind, {'count': 0, 'bytes': 0})
    entry['count'] += 1
    # The asynchronous form returns its operand too.
    entry['bytes'] += max(sizes, default=0) if start else sum(sizes)
  sent = [_sizes(shape)[0] for shape in re.findall(_BETWEEN_SLICES, hlo)]
  if sent:
    exchanges['between slices'] = {'count': len(sent), 'bytes': sum(sent)}
  return exchanges


def _sizes(shape: str) -> list[int]:
  """Bytes of each array in the type of an HLO instruction."""
  return [_bytes(*part) for part in re.findall(r'([a-z]+\d*)\w*\[([\d,]*)\]', shape)]


def _bytes(dtype: str, shape: str) -> int:
  sizes = [int(n) for n in shape.split(',') if n]
  return int(np.prod(sizes, dtype=np.int64)) * hlo_traffic.bits(dtype) // 8
