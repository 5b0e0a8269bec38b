"""(d) A scan of clinical size by number of classes: seconds by stage, bytes that travel."""

import functools
import time

import jax
import numpy as np

from input_pipeline.anatomy import TEMPLATE
from mome_jax import checkpoint
from mome_jax.checkpoint.files import PARAMS
from mome_jax.inference.loaded_model import Predictor
from mome_jax.inference.stage_clock import Clock
from mome_jax.models import build_model
from mome_jax.text.prompts import default_prompts
from mome_jax.text.t5 import build_text_encoder
from mome_jax.training import state
from tests.benchmarks.accelerator import networks
from tests.benchmarks.accelerator.runner import Case, Part, Settings

STAGES = ('resample', 'network', 'blend')


def cases(settings: Settings) -> list[Case]:
  """Rows by number of classes."""
  counts = (1, 3) if settings.tiny else (1, 8, 32, 117)
  return [
    Case(f'{count} classes', functools.partial(_segment, settings, count)) for count in counts
  ]


def _segment(settings: Settings, count: int) -> dict:
  """The second of two scans; the first one compiles."""
  model = _model(settings)
  names = list(TEMPLATE.names())[:count]
  free = [f'structure number {i}' for i in range(count - len(names))]
  prompts = default_prompts(names, TEMPLATE) + free
  segmenter = model.segmenter(names, prompts, rules=(), free=free)
  shape, spacing = (
    ((24, 20, 18), (3.0,) * 3) if settings.tiny else ((512, 512, 280), (0.8, 0.8, 1.5))
  )
  scan = _scan(shape)
  start = time.perf_counter()
  segmenter(scan, spacing)
  first = time.perf_counter() - start
  clock = Clock()
  start = time.perf_counter()
  segmenter(scan, spacing, clock=clock)
  seconds = time.perf_counter() - start
  stages = clock.seconds()
  return {
    'seconds': seconds,
    'first': first,
    **{stage: stages.get(stage, 0.0) for stage in STAGES},
    **clock.counts(),
    'shape': list(shape),
  }


def _scan(shape: tuple[int, int, int]) -> np.ndarray:
  """A body in air: an ellipse of noisy tissue in every axial plane, int16 HU."""
  x, y = (np.linspace(-1, 1, n)[:, None] for n in shape[:2])
  body = (x / 0.9) ** 2 + (y.T / 0.7) ** 2 < 1
  noise = np.random.default_rng(0).normal(40, 60, shape).astype(np.int16)
  return np.where(body[..., None], noise, np.int16(-1000))


@functools.cache
def _model(settings: Settings) -> Predictor:
  """The paper's U-Net with fresh weights; half of all voxels are of a class at random."""
  side = 16 if settings.tiny else 96
  config = networks.config_of(
    'unet', tiny=settings.tiny, side=side, batch=1, dtype='float32' if settings.tiny else 'bfloat16'
  )
  folder = settings.output / 'fresh_model'
  if not (folder / PARAMS).is_dir():  # written last: a part may have been stopped before
    model, encoder = build_model(config.model), build_text_encoder(config.text)
    create = functools.partial(state.init_params, config, model, encoder)
    params = jax.jit(create)(jax.random.key(0, impl='rbg'))
    checkpoint.save_model(folder, config, jax.tree.map(np.asarray, params))
  return Predictor(folder, devices=jax.devices()[:1])


PART = Part(
  'A scan of 512 x 512 x 280 voxels at 0.8 x 0.8 x 1.5 mm (tiny: 24 x 20 x 18) to masks on its own '
  'grid, U-Net in bfloat16 on 1.5 mm with fresh weights, windows of 96^3, half overlapping; what '
  'is beyond the template competes with nothing;',
  {
    'seconds': 'scan (s)',
    'first': 'first scan (s)',
    **{stage: f'{stage} (s)' for stage in STAGES},
    'windows': 'windows',
    'bytes_to_device': 'bytes to the device',
    'bytes_from_device': 'bytes from it',
  },
  cases,
)
