"""The table of classes is that of the template."""

import pathlib

from input_pipeline.anatomy import TEMPLATE

PAGE = pathlib.Path(__file__).resolve().parents[2] / 'docs/classes.md'


def test_the_table_is_the_template():
  rows = []
  for name in TEMPLATE.names():
    structure = TEMPLATE.get(name)
    parents, synonyms = ', '.join(structure.parents), ', '.join(structure.synonyms)
    rows.append(f'| {structure.index} | {name} | {parents} | {synonyms} |')
  table = [line for line in PAGE.read_text().splitlines() if line.startswith('| ')]
  assert table[1:] == rows, '\n'.join(rows)
