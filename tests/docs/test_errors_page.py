"""The page of errors quotes messages that the program can print."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs/errors.md'
MESSAGES = re.compile(r'- ((?:`[^`]+`(?:, exit code \d+)?(?: \([^`]*?\))?(?:, |: ))+)')


def quoted():
  """The messages of the page: the code spans that head its items."""
  items = [line for line in PAGE.read_text().splitlines() if line.startswith('- `')]
  assert len(items) > 50
  for item in items:
    head = MESSAGES.match(item)
    assert head, f'expected messages, a colon and what they mean: {item}'
    yield from re.findall(r'`([^`]+)`', head[1])


def texts():
  """Every text of the sources, with … for what is filled in."""
  for part in ('mome_jax', 'input_pipeline', 'integrations'):
    for path in (ROOT / part).rglob('*.py'):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
          parts = [p.value if isinstance(p, ast.Constant) else '…' for p in node.values]
          yield ' '.join(''.join(parts).split())
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
          yield ' '.join(node.value.split())


def test_quoted_messages_exist():
  known, lost = sorted(set(texts())), []
  for message in quoted():
    parts = [' '.join(part.split()) for part in message.split('…')]
    longest = max(parts, key=len)  # found sooner than the whole
    pattern = re.compile('.*'.join(map(re.escape, parts)))
    if not any(longest in text and pattern.search(text) for text in known):
      lost.append(message)
  assert not lost, '\n'.join(lost)
