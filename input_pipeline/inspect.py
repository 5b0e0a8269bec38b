r"""Pictures of prepared sources, to see mistakes before training.

  python -m input_pipeline.inspect --data_dir=DIR [--source=NAME ...] [--output=DIR]

Writes `SOURCE.png` for each prepared source: augmented training patches with the contours of their
labels, how many voxels and cases each class has, the spread of HU, and the scans' sizes and
spacings.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import ml_collections
import numpy as np

from input_pipeline import bricks, cli, errors
from input_pipeline.batches import dataset

_PATCHES = 6
_WINDOW = (-175.0, 250.0)


def contact_sheet(
  store: bricks.BrickStore, path: pathlib.Path, *, seed: int = 0, patches: int = _PATCHES
) -> dict[str, tuple[int, int]]:
  """Draws one source.

  Args:
    store: its bricks.
    path: PNG file to write.
    seed: of the patches.
    patches: how many to draw.

  Returns:
    class -> (training cases that supervise it, voxels there), for the supervised classes.
  """
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  supervised = {name for case in store.cases for name in case.supervised}
  names = [name for name in store.template.names() if name in supervised]
  counts = store.class_voxels(names).sum(0)
  cases = [sum(name in case.supervised for case in store.cases) for name in names]
  edge = store.brick + store.brick // 2
  config = ml_collections.ConfigDict(
    {
      'patch': (edge,) * 3,
      'windows': (_WINDOW,),
      'foreground': 1.0,
      'balance': 'sources',
      'cache_mb': 256,
      'augment': {},
    }
  )
  sampler = dataset.PatchSampler(config, [store], names)
  figure = pyplot.figure(figsize=(3 * patches, 9.5), layout='constrained')
  figure.suptitle(
    f'{store.name}: {len(store.cases)} training scans, {len(store)} bricks of {store.brick} voxels '
    f'at {" x ".join(f"{mm:g}" for mm in store.spacing)} mm; augmented patches, right on the left'
  )
  grid = figure.add_gridspec(3, patches, height_ratios=(1, 1, 1.1))
  hu = []
  colours = pyplot.get_cmap('tab20')(np.arange(len(names)) % 20)
  for i in range(patches):
    example = sampler.sample(i, seed)
    axes = [figure.add_subplot(grid[row, i]) for row in (0, 1)]
    _draw_patch(axes, example, store.template.code_table(names), names, colours, store.spacing)
    image, _ = store.read(int(np.random.default_rng([seed, i]).integers(len(store))))
    hu.append(image[::4, ::4, ::4].ravel())
  below = grid[2, :].subgridspec(1, 6)
  _draw_classes(figure.add_subplot(below[:3]), names, counts, cases, colours)
  spread = figure.add_subplot(below[3])
  spread.hist(np.concatenate(hu), bins=np.arange(-1024, 1600, 32), log=True, color='0.4')
  spread.set(title='HU of some bricks', xlabel='HU', ylabel='voxels')
  extent = np.array([case.shape for case in store.cases]) * store.spacing
  _draw_axes(figure.add_subplot(below[4]), extent, 'extent of the scans, mm')
  known = [case.own_spacing for case in store.cases if case.own_spacing]
  if known:
    _draw_axes(figure.add_subplot(below[5]), np.array(known), 'their own spacing, mm')
  with errors.writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
  pyplot.close(figure)
  return {name: (c, int(n)) for name, c, n in zip(names, cases, counts, strict=True)}


def _draw_patch(axes, example, table, names, colours, spacing):
  """The axial and coronal slice with the most labelled voxels, as radiologists read them."""
  image, label = example['image'][..., 0], example['label']
  labelled = table[label].any(-1)
  for axis, subplot in zip((2, 1), axes, strict=True):
    others = tuple(a for a in range(3) if a != axis)
    at = int(labelled.sum(others).argmax())
    # (vertical, horizontal): x runs to the patient's right and is drawn to the left; the other up.
    aspect = spacing[others[1]] / spacing[0]
    view = {'origin': 'lower', 'aspect': aspect}
    subplot.imshow(np.take(image, at, axis).T, cmap='gray', vmin=0, vmax=1, **view)
    codes = np.take(label, at, axis).T
    shown = []
    for k, name in enumerate(names):
      mask = table[:, k][codes]
      if mask.any() and not mask.all():
        subplot.contour(mask, levels=[0.5], colors=[colours[k]], linewidths=1)
      if mask.any():
        shown.append(name)
    subplot.invert_xaxis()
    for edge, side in ((0.03, 'R'), (0.97, 'L')):
      place = {'transform': subplot.transAxes, 'ha': 'center', 'va': 'center'}
      subplot.text(edge, 0.5, side, color='white', fontsize=7, **place)
    subplot.set(xticks=[], yticks=[])
    subplot.set_title('\n'.join(shown[:3]) or 'nothing labelled', fontsize=7)


def _draw_classes(subplot, names, counts, cases, colours):
  rows = np.arange(len(names))
  subplot.barh(rows, np.maximum(counts, 1), color=colours)
  subplot.set_yticks(rows, [f'{name} ({n})' for name, n in zip(names, cases, strict=True)])
  subplot.tick_params(axis='y', labelsize=7)
  subplot.invert_yaxis()
  subplot.set(xscale='log', title='voxels of each class (cases that label it)')


def _draw_axes(subplot, values, title):
  subplot.boxplot(values)
  subplot.set(title=title, xticklabels=('right', 'anterior', 'superior'))
  subplot.tick_params(axis='x', labelsize=7)


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = cli.Parser(
    prog='python -m input_pipeline.inspect',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--data-dir', required=True, type=pathlib.Path)
  parser.add_argument('--source', action='append', help='default: every prepared one')
  parser.add_argument('--output', type=pathlib.Path, help='default: DATA_DIR/inspect')
  parser.add_argument('--seed', type=int, default=0, help='of the patches (0)')
  return parser


@errors.command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = make_parser().parse_args(cli.dashed(argv))
  found = bricks.prepared_sources(args.data_dir)
  code = 0
  for name in args.source or found:
    path = (args.output or args.data_dir / 'inspect') / f'{name}.png'
    try:
      classes = contact_sheet(bricks.open_bricks(args.data_dir, name), path, seed=args.seed)
    except errors.UserError as error:  # costs only this source
      print(f'error: {errors.one_line(error)}', file=sys.stderr)
      code = 1
      continue
    empty = [label for label, (_, voxels) in classes.items() if not voxels]
    print(f'{path}: {len(classes)} classes' + (f'; without a voxel: {empty}' if empty else ''))
  if not (args.source or found):
    raise bricks.NotPreparedError(
      f'{args.data_dir}: holds no prepared source; run python -m input_pipeline.prepare first'
    )
  return code


if __name__ == '__main__':
  sys.exit(main())
