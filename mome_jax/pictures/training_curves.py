"""The picture of a training: losses, learning rate and gradient norm over the steps."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import scipy.ndimage
from matplotlib import ticker
from matplotlib.axes import Axes

from mome_jax.pictures import layout

_LINES = ('#0072B2', '#E69F00', '#009E73')


def training_curves(path: str | os.PathLike, rows: Iterable[Mapping[str, float]]) -> None:
  """Draws losses, learning rate and gradient norm over the steps.

  Args:
    path: PNG file to write.
    rows: the objects of `metrics.jsonl`; a row without a key or with a value that is not finite is
      left out of that key's line.
  """
  rows = list(rows)
  figure, top = layout.titled('Training', 12.0, 3.35)
  rate_steps, rate = _series(rows, 'learning_rate')
  exponent = math.floor(math.log10(rate.max())) if rate.any() else 0
  unit = rf' ($\times 10^{{{exponent}}}$)' if rate.any() else ''
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
    axes.set_xlabel('step', fontsize=9, color=layout.INK)
    if i == 0 and axes.lines:
      axes.legend(ncols=3, loc='lower right', bbox_to_anchor=(1.03, 0.96), **layout.PLAIN)
    _tidy(axes, log=i == 2)
  layout.save(figure, path)


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
