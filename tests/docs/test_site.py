"""The documentation site builds, with broken links, anchors and references as errors."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  folder = tmp_path_factory.mktemp('site')
  done = subprocess.run(
    [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(folder)],
    cwd=ROOT, env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'}, capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  return folder


def test_every_page_has_content(site):
  pages = list(site.rglob('index.html'))
  assert len(pages) > 20
  for page in pages:
    article = re.search(r'<article.*?</article>', page.read_text(), flags=re.DOTALL)[0]
    text = re.sub(r'<[^>]+>', ' ', article)
    assert len(text.split()) > 60, page
    assert '--8<--' not in text, page
    assert ':::' not in text, page


def test_equations_are_typeset_and_figures_drawn(site):
  page = (site / 'method/index.html').read_text()
  assert page.count('<math') > 30
  assert 'arithmatex' not in page
  assert '<svg class="mome"' in page


def test_no_page_asks_another_server(site):
  for page in site.rglob('*.html'):
    loaded = re.findall(
      r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?:[^"]+)', page.read_text()
    )
    assert not loaded, (page, loaded)


def test_every_member_that_a_reference_page_names_is_on_it(site):
  named = 0
  for source in (ROOT / 'docs/reference').glob('*.md'):
    page = (site / 'reference' / source.stem / 'index.html').read_text(encoding='utf-8')
    entries = re.finditer(r'^::: (\S+)\n((?: {4}.*\n)*)', source.read_text('utf-8'), re.MULTILINE)
    for entry in entries:
      options = (yaml.safe_load(entry[2]) or {}).get('options', {})
      for member in options.get('members', []):
        named += 1
        assert f'id="{entry[1]}.{member}"' in page, (source.name, entry[1], member)
  assert named > 20
