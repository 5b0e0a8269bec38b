"""The picture of detection: lesions found against false positives, over the threshold."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mome_jax.pictures import layout
from mome_jax.pictures.colours import palette


def froc_curve(path: str | os.PathLike, points: Sequence[Mapping[str, Any]]) -> bool:
  """Draws lesions found against false positives per healthy scan, one line a class.

  Args:
    path: PNG file to write.
    points: of `evaluate.froc.summarize`, the numbers of one class at one threshold each.

  Returns:
    Whether there was a class with lesions in some scans and none in others, and so a picture.
  """
  names = dict.fromkeys(p['class'] for p in points if p['n_diseased'] and p['n_healthy'])
  if not names:
    return False
  title = 'Lesions found against false positives, by threshold'
  figure, top = layout.titled(title, 6.6, 3.9)
  axes = layout.inches(figure, 0.65, top - 3.35, 3.9, 3.2)
  colours = palette(list(names))
  for name in names:
    curve = [p for p in points if p['class'] == name]
    x, y = (
      [p[key] for p in curve] for key in ('false_positives_per_healthy', 'lesion_sensitivity')
    )
    colour = colours[name]
    axes.plot(x, y, color=colour, marker='.', label=name, clip_on=False)
    middle = [p['threshold'] for p in curve].index(0.5)
    axes.plot(x[middle], y[middle], 'o', color=colour, markersize=8, clip_on=False)
  axes.plot([], [], 'o', color='#888888', markersize=8, label='threshold 0.5')
  axes.set(ylim=(0, 1), xlim=(0, None))
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(color='#E6E6E6', linewidth=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(labelsize=8, colors='#555555')
  axes.set_xlabel('false positives per healthy scan', fontsize=9, color=layout.INK)
  axes.set_ylabel('share of lesions found', fontsize=9, color=layout.INK)
  axes.legend(loc='upper left', bbox_to_anchor=(1.03, 1.02), **layout.PLAIN)
  layout.save(figure, path)
  return True
