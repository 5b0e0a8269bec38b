"""The picture of a training: losses, learning rate, gradient norm and validation over the steps."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import scipy.ndimage
from matplotlib import ticker
from matplotlib.axes import Axes

from mome_jax.pictures import layout

_LINES = ('#0072B2', '#E69F00', '#009E73')
_DICE = 'validation/dice'


def training_curves(path: str | os.PathLike, rows: Iterable[Mapping[str, float]]) -> None:
  """Draws losses, learning rate and gradient norm over the steps, and Dice on held-out scans.

  Losses on held-out scans are dots in the colour of the same loss in training.

  Args:
    path: PNG file to write.
    rows: the objects of `metrics.jsonl`; a row without a key or with a value that is not finite is
      left out of that key's line.
  """
  rows = list(rows)
  validated = _series(rows, _DICE)
  width = 15.95 if len(validated[0]) else 12.0
  figure, top = layout.titled('Training', width, 3.35)
  rate_steps, rate = _series(rows, 'learning_rate')
  exponent = math.floor(math.log10(rate.max())) if rate.any() else 0
  unit = f' (\u00d7 1e{exponent})' if rate.any() else ''
  losses = {'total': 'loss', 'BCE': 'loss_bce', 'Dice': 'loss_dice'}
  panels = (
    ('Loss', {name: _series(rows, key) for name, key in losses.items()}),
    (f'Learning rate{unit}', {'': (rate_steps, rate / 10.0**exponent)}),
    ('Gradient norm', {'': _series(rows, 'grad_norm')}),
  )
  for i, (label, series) in enumerate(panels):
    axes = layout.inches(figure, 0.65 + 3.95 * i, top - 2.85, 3.3, 2.6)
    for (name, (steps, values)), line in zip(series.items(), _LINES, strict=False):
      _curve(axes, steps, values, name, line, smooth=i != 1)
    layout.caption(axes, label)
    if i == 0:
      for name, line in zip(('BCE', 'Dice'), _LINES[1:], strict=True):
        steps, values = _series(rows, f'validation/{losses[name]}')
        if len(steps):
          axes.plot(steps, values, 'o', color=line, markersize=4)
      if len(validated[0]):
        axes.plot([], [], 'o', color='#777777', markersize=4, label='held out')
      if axes.lines:
        axes.legend(
          ncols=4,
          columnspacing=1.0,
          handlelength=1.4,
          loc='lower right',
          bbox_to_anchor=(1.03, 0.96),
          **layout.PLAIN,
        )
    _tidy(axes, log=i == 2)
  if len(validated[0]):
    axes = layout.inches(figure, 0.65 + 3.95 * 3, top - 2.85, 3.3, 2.6)
    _draw_validation(axes, rows)
  layout.save(figure, path)


def _draw_validation(axes: Axes, rows: Sequence[Mapping[str, float]]) -> None:
  """Dice of each class in grey, their mean, and the smoothed mean with its highest value."""
  layout.caption(axes, 'Dice, %')
  classes = sorted({key for row in rows for key in row if key.startswith(f'{_DICE}/')})
  for i, key in enumerate(classes):
    steps, values = _series(rows, key)
    label = '' if i else 'class'
    axes.plot(steps, 100 * values, color='#BBBBBB', linewidth=0.8, label=label)
  steps, values = _series(rows, _DICE)
  axes.plot(steps, 100 * values, color=_LINES[0], linewidth=1.8, label='mean', marker='o', ms=3)
  steps, values = _series(rows, f'{_DICE}_smooth')
  if len(steps):
    axes.plot(steps, 100 * values, color=_LINES[1], linewidth=1.2, label='smoothed')
    best = values.argmax()
    axes.plot(steps[best], 100 * values[best], 'o', color=_LINES[1], ms=7, mfc='none')
  axes.legend(
    ncols=3, columnspacing=1.0, handlelength=1.4, loc='lower right', bbox_to_anchor=(1.03, 0.96),
    **layout.PLAIN,
  )  # fmt: skip
  _tidy(axes, log=False)


def _series(rows: Sequence[Mapping[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
  points = [(row['step'], row[key]) for row in rows if row.get(key) is not None and 'step' in row]
  finite = np.array([point for point in points if math.isfinite(point[1])], float).reshape(-1, 2)
  return finite[:, 0], finite[:, 1]


def _curve(
  axes: Axes, steps: np.ndarray, values: np.ndarray, name: str, line: str, *, smooth: bool
) -> None:
  if not len(steps):
    return
  if smooth and len(steps) > 10:
    axes.plot(steps, values, color=line, alpha=0.25, linewidth=0.8)
    values = scipy.ndimage.gaussian_filter1d(values, len(values) / 40, mode='nearest')
  marker = 'o' if len(steps) == 1 else None
  axes.plot(steps, values, color=line, linewidth=1.8, label=name, marker=marker)


def _tidy(axes: Axes, *, log: bool) -> None:
  axes.set_xlabel('step', fontsize=9, color=layout.INK)
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color('#AAAAAA')
  axes.grid(axis='y', color='#E6E6E6', linewidth=0.8)
  axes.set_axisbelow(True)
  axes.margins(x=0.02)
  if not axes.lines:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, 'no values', transform=axes.transAxes, ha='center', color='#777777')
    return
  values = np.concatenate([line.get_ydata() for line in axes.lines])
  if log and values.min() > 0 and values.max() > 10 * values.min():
    axes.set_yscale('log')
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f'{value:g}'))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
  axes.tick_params(labelsize=8, colors='#555555', which='both')
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
  axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))
