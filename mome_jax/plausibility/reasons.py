"""Measures in words."""

from mome_jax.plausibility.measures import SHELLS_MM, SURROUNDINGS, TISSUES
from mome_jax.plausibility.record import Range

_AXES = (('right', 'left'), ('anterior', 'posterior'), ('superior', 'inferior'))
_NAMES = {
  'volume_ml': ('volume', 'ml'),
  'section_mm2': ('mean axial section', 'mm2'),
  'mean_hu': ('mean', 'HU'),
  'hu_sd': ('standard deviation', 'HU'),
  'body_cm2': ('axial section of the body there', 'cm2'),
  'section_cm2': ('median axial section of the body', 'cm2'),
  'slimmest_cm2': ('slimmest axial section of the body', 'cm2'),
}
_TISSUES = dict(
  zip(TISSUES, ('outside the body', 'air', 'fat', 'soft tissue', 'bone'), strict=True)
)


def of_mask(name: str, value: float, span: Range, excess: float) -> str:
  """What is wrong with a mask, by one of `measures.MASK`."""
  if name in ('right', 'anterior'):
    side = _AXES[('right', 'anterior').index(name)][excess < 0]
    return f'lies too far {side} in the body'
  if name == 'largest_piece':
    return f'in pieces: the largest is {_percent(value)} of it, {_percent(span.low)} in training'
  if name in SURROUNDINGS:
    shell, tissue = divmod(SURROUNDINGS.index(name), len(TISSUES))
    low, high = SHELLS_MM[shell]
    where = f'within {high:.0f} mm' if not low else f'from {low:.0f} to {high:.0f} mm'
    return f'{_TISSUES[TISSUES[tissue]]} {where}: {_share(value, span)}'
  return _quantity(name, value, span)


def of_scan(name: str, value: float, span: Range, excess: float) -> str:
  """How a scan is unlike those of training, by one of `measures.SCAN`."""
  if name in _TISSUES:
    return f'{_TISSUES[name]} in the body: {_share(value, span)}'
  return _quantity(name, value, span)


def of_offset(other: str, axis: int, value: float, span: Range) -> str:
  """Where a mask lies from another class, in place of where it should.

  Args:
    other: class.
    axis: 0 to 2.
    value: mm of the mask from the other class along the axis.
    span: of the other class from the mask's, mm.
  """
  places = [_towards(axis, number) for number in (value, *sorted((-span.low, -span.high)))]
  return f'lies {places[0]} of the {other}, {places[1]} to {places[2]} in training'


def _towards(axis: int, mm: float) -> str:
  return f'{abs(mm):.0f} mm {_AXES[axis][mm < 0]}'


def _quantity(name: str, value: float, span: Range) -> str:
  title, unit = _NAMES[name]
  return f'{title} {_number(value)} {unit}, {_number(span.low)} to {_number(span.high)} in training'


def _share(value: float, span: Range) -> str:
  return f'{_percent(value)}, {_percent(span.low)} to {_percent(span.high)} in training'


def _percent(value: float) -> str:
  return f'{100 * value:.0f} %'


def _number(value: float) -> str:
  return f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'
