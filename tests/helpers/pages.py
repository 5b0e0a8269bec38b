"""Commands and programs of the documentation, and the marks of those that no test runs.

`<!-- not run: why -->` stands on the line before a block, or right behind a command in the text;
`<!-- not run in this page: why -->` is for all commands of a page that no test runs.
"""

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [
  *(ROOT / name for name in ('README.md', 'BUILD.md', 'CONTRIBUTING.md', 'launch/README.md')),
  ROOT / 'mome_jax/assets/openkbp/README.md',
  *sorted((ROOT / 'docs').rglob('*.md')),
]
FENCE = re.compile(
  r'(?:<!-- not run: ([^\n]+) -->\n)?^( *)```(\w*)\n(.*?)^ *```$', flags=re.DOTALL | re.MULTILINE
)
INLINE = re.compile(
  r'`((?:\w+=\S* )?(?:python -m [^\s`]+|python [^\s`]+\.py|mome|make|pip install) [^`]+)`'
  r'(?:<!-- not run: (.+?) -->)?'
)
WHOLE_PAGE = re.compile(r'<!-- not run in this page: (.+?) -->')


@dataclasses.dataclass(frozen=True)
class Command:
  """A command of a page.

  Attributes:
    page: file.
    line: on one line, without comments, spaces once.
    why: no test runs it, or ''.
    whole_page: whether the page says so of all that no test runs.
  """

  page: pathlib.Path
  line: str
  why: str = ''
  whole_page: bool = False

  def __str__(self) -> str:
    return f'{self.page.relative_to(ROOT)}: {self.line[:60]}'


def commands(page: pathlib.Path) -> Iterator[Command]:
  """The commands of a page's blocks, then of its running text."""
  text = page.read_text()
  whole = WHOLE_PAGE.search(text)
  lines = []
  for why, _, language, body in FENCE.findall(text):
    if language in ('', 'bash', 'sh', 'console'):
      lines += [(line, why) for line in body.replace('\\\n', ' ').splitlines()]
  lines += [(line, why) for line, why in INLINE.findall(FENCE.sub('', text)) if '…' not in line]
  for line, why in lines:
    line = ' '.join(re.sub(r'(^|\s)# .*', '', line).split())
    if line:
      yield Command(page, line, why or (whole[1] if whole else ''), not why and bool(whole))


def programs(page: pathlib.Path) -> list[str]:
  """The Python programs of a page."""
  blocks = FENCE.findall(page.read_text())
  return [body for _, _, language, body in blocks if language == 'python']


def words(line: str) -> list[str]:
  """Of a command, without the variables before it."""
  parts = shlex.split(line)
  while re.match(r'[A-Z_]+=', parts[0]):
    parts.pop(0)
  return parts
