"""A picture of a prepared source: patches with contours, classes, HU, sizes and spacings."""

import contextlib
import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from input_pipeline import bricks, errors
from input_pipeline.anatomy import ClassError
from input_pipeline.batches import augment, contrast, mirror
from input_pipeline.batches.sampler import PatchSampler

_PATCHES = 6
_WINDOW = (-175.0, 250.0)


@dataclasses.dataclass(frozen=True)
class _Classes:
  """The K classes of a picture.

  Attributes:
    names: of each.
    cases: training cases that label it.
    voxels: (K,) int64, there.
    colours: (K, 4) float64, red, green, blue, opacity in [0, 1].
    table: (256, K) bool, the codes that count as each.
  """

  names: Sequence[str]
  cases: Sequence[int]
  voxels: np.ndarray
  colours: np.ndarray
  table: np.ndarray


def contact_sheet(
  store: bricks.BrickStore, path: os.PathLike, *, seed: int = 0, patches: int = _PATCHES
) -> dict[str, tuple[int, int]]:
  """Draws one source.

  Args:
    store: its bricks.
    path: PNG file to write, may be gs://.
    seed: of the patches.
    patches: how many to draw.

  Returns:
    class -> (training cases that label it, voxels there), for the labelled classes.

  Raises:
    UserError: if the file cannot be written.
  """
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  classes = _classes(store, pyplot.get_cmap('tab20'))
  figure = pyplot.figure(figsize=(3 * patches, 9.5), layout='constrained')
  figure.suptitle(
    f'{store.name}: {len(store.cases)} training scans, {len(store)} bricks of {store.brick} voxels '
    f'at {" x ".join(f"{mm:g}" for mm in store.spacing)} mm; augmented patches, right on the left'
  )
  grid = figure.add_gridspec(3, patches, height_ratios=(1, 1, 1.1))
  sampler = _sampler(store, classes.names)
  hu = []
  for i in range(patches):
    axes = [figure.add_subplot(grid[row, i]) for row in (0, 1)]
    _draw_patch(axes, sampler.sample(i, seed), classes, store.spacing)
    image, _ = store.read(int(np.random.default_rng([seed, i]).integers(len(store))))
    hu.append(image[::4, ::4, ::4].ravel())
  below = grid[2, :].subgridspec(1, 6)
  _draw_classes(figure.add_subplot(below[:3]), classes)
  _draw_hu(figure.add_subplot(below[3]), np.concatenate(hu))
  extent = np.array([case.shape for case in store.cases]) * store.spacing
  _draw_axes(figure.add_subplot(below[4]), extent, 'extent of the scans, mm')
  known = [case.own_spacing for case in store.cases if case.own_spacing]
  if known:
    _draw_axes(figure.add_subplot(below[5]), np.array(known), 'their own spacing, mm')
  _save(figure, path)
  pyplot.close(figure)
  counts = zip(classes.cases, map(int, classes.voxels), strict=True)
  return dict(zip(classes.names, counts, strict=True))


def _save(figure: Any, path: os.PathLike) -> None:
  png = io.BytesIO()
  figure.savefig(png, dpi=80, format='png')
  file = epath.Path(path)
  with errors.writing(path):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png.getvalue())


def augmentations(store: bricks.BrickStore, path: os.PathLike, *, seed: int = 0) -> list[str]:
  """Draws one patch as it is, and after each augmentation alone, at the strong end of its range.

  Args:
    store: bricks of the source.
    path: PNG file to write, may be gs://.
    seed: of the patch and what is drawn.

  Returns:
    The augmentations, as fields of `augment.DEFAULTS` without their p_.

  Raises:
    UserError: if the file cannot be written.
  """
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  classes = _classes(store, pyplot.get_cmap('tab20'))
  plain = _sampler(store, classes.names, {'enabled': False}).sample(0, seed)
  examples = {'as it is': plain} | _each_alone(store, classes.names, plain, seed)
  columns = -(-len(examples) // 2)
  figure = pyplot.figure(figsize=(2.2 * columns, 9.2), layout='constrained')
  figure.suptitle(f'{store.name}: one patch, and after each augmentation alone; right on the left')
  grid = figure.add_gridspec(4, columns)
  for i, (name, example) in enumerate(examples.items()):
    row, column = divmod(i, columns)
    axes = [figure.add_subplot(grid[2 * row + part, column]) for part in (0, 1)]
    # Of rays, the slices with most of them.
    shown = np.abs(example['image'] - plain['image'])[..., 0] if name == 'streaks' else None
    _draw_patch(axes, example, classes, store.spacing, shown)
    axes[0].set_title(name.replace('_', ' '), fontsize=9)
    axes[1].set_title('')
  _save(figure, path)
  pyplot.close(figure)
  return [*examples][1:]


def _each_alone(
  store: bricks.BrickStore, names: Sequence[str], plain: Mapping[str, np.ndarray], seed: int
) -> dict[str, Mapping[str, np.ndarray]]:
  """The patch `plain` after each augmentation, by the name of its switch without p_."""
  examples: dict[str, Mapping[str, np.ndarray]] = {}
  with contextlib.suppress(ClassError):  # classes of one side only have no mirror image
    codes = mirror.mirrored_codes(store.template)
    image, label, _ = mirror.mirror(plain['image'], plain['label'], plain['frame'], codes)
    examples['mirror'] = {'image': image, 'label': label}
  switches = [field for field in augment.DEFAULTS if field.startswith('p_')]
  strong = {
    field: (value[1], value[1])
    for field, value in augment.DEFAULTS.items()
    # The axes of stretch differ; the phase goes through all, below.
    if isinstance(value, tuple) and field not in ('stretch', 'contrast_phase')
  } | {'contrast_dose': (1.0, 1.0)}
  for switch in switches:
    name = switch.removeprefix('p_')
    alone = strong | dict.fromkeys(switches, 0.0) | {switch: 1.0}
    if name == 'contrast':
      for time, phase in enumerate(contrast.NAMES, 1):
        at = alone | {'contrast_phase': (time, time)}
        examples[f'{name}: {phase}'] = _sampler(store, names, at).sample(0, seed)
    elif name != 'mirror':
      examples[name] = _sampler(store, names, alone).sample(0, seed)
  return examples


def _classes(store: bricks.BrickStore, colour_map) -> _Classes:
  labelled = {name for case in store.cases for name in case.labelled}
  names = [name for name in store.template.names() if name in labelled]
  return _Classes(
    names,
    [sum(name in case.labelled for case in store.cases) for name in names],
    store.class_voxels(names).sum(0),
    colour_map(np.arange(len(names)) % 20),
    store.template.code_table(names),
  )


def _sampler(
  store: bricks.BrickStore, names: Sequence[str], augmentation: Mapping[str, Any] | None = None
) -> PatchSampler:
  edge = store.brick + store.brick // 2
  config = ml_collections.ConfigDict(
    {
      'patch': (edge,) * 3,
      'windows': (_WINDOW,),
      'foreground': 1.0,
      'balance': 'sources',
      'cache_mb': 256,
      'augment': augmentation or {},
    }
  )
  return PatchSampler(config, [store], names)


def _draw_patch(
  axes,
  example: Mapping[str, np.ndarray],
  classes: _Classes,
  spacing: Sequence[float],
  shown_by: np.ndarray | None = None,
) -> None:
  """The axial and coronal slice with the most labelled voxels, as radiologists read them.

  Or with most of `shown_by`, (D, H, W).
  """
  image, label = example['image'][..., 0], example['label']
  most = classes.table[label].any(-1) if shown_by is None else shown_by
  for axis, subplot in zip((2, 1), axes, strict=True):
    others = tuple(a for a in range(3) if a != axis)
    at = int(most.sum(others).argmax())
    # (vertical, horizontal): x runs to the patient's right and is drawn to the left; the other up.
    aspect = spacing[others[1]] / spacing[0]
    view = {'origin': 'lower', 'aspect': aspect}
    subplot.imshow(np.take(image, at, axis).T, cmap='gray', vmin=0, vmax=1, **view)
    codes = np.take(label, at, axis).T
    shown = []
    for k, name in enumerate(classes.names):
      mask = classes.table[:, k][codes]
      if mask.any() and not mask.all():
        subplot.contour(mask, levels=[0.5], colors=[classes.colours[k]], linewidths=1)
      if mask.any():
        shown.append(name)
    subplot.invert_xaxis()
    for edge, side in ((0.03, 'R'), (0.97, 'L')):
      place = {'transform': subplot.transAxes, 'ha': 'center', 'va': 'center'}
      subplot.text(edge, 0.5, side, color='white', fontsize=7, **place)
    subplot.set(xticks=[], yticks=[])
    subplot.set_title('\n'.join(shown[:3]) or 'nothing labelled', fontsize=7)


def _draw_classes(subplot, classes: _Classes) -> None:
  rows = np.arange(len(classes.names))
  names = [f'{name} ({n})' for name, n in zip(classes.names, classes.cases, strict=True)]
  # Dots: the length of a bar on a logarithmic axis says nothing.
  voxels = np.where(classes.voxels > 0, classes.voxels, np.nan)
  subplot.scatter(voxels, rows, color=classes.colours, edgecolors='0.3', linewidths=0.5, zorder=2)
  subplot.grid(color='0.9')
  subplot.set_axisbelow(True)
  subplot.set_yticks(rows, names)
  subplot.tick_params(axis='y', labelsize=7)
  subplot.invert_yaxis()
  scale = 'log' if classes.voxels.any() else 'linear'  # of nothing there is no logarithm
  subplot.set(xscale=scale, title='voxels of each class (cases that label it)')


def _draw_hu(subplot, hu: np.ndarray) -> None:
  bins = np.arange(-1024, 1600, 32)
  subplot.hist(hu, bins=bins, log=True, color='0.4', histtype='step')
  subplot.set(title='HU of some bricks', xlabel='HU', ylabel='voxels')


def _draw_axes(subplot, values: np.ndarray, title: str) -> None:
  """A box plot for each axis; `values` (scans, 3)."""
  subplot.boxplot(values)
  subplot.set(title=title, xticklabels=('right', 'anterior', 'superior'))
  subplot.tick_params(axis='x', labelsize=7)
