"""The config file of a DICOM node: what it holds, and how a slip in it is explained."""

import pytest
from threshold import Threshold

from mome_jax.dicom_node import node, settings
from mome_jax.dicom_node.settings import Destination, Settings, SettingsError

GOOD = """
ae_title = "MOME"
port = 0
results = ["dicom_seg", "rtstruct"]
callers = ["A", "B"]
wait = 2
[[destinations]]
ae_title = "ARCHIVE"
host = "localhost"
port = 4242
"""


def test_a_config_file(tmp_path):
  path = tmp_path / 'node.toml'
  path.write_text(GOOD)
  told = settings.read(path)
  assert told.destinations == (Destination('ARCHIVE', 'localhost', 4242),)
  assert (told.results, told.callers, told.wait) == (('dicom_seg', 'rtstruct'), ('A', 'B'), 2)
  assert told.host == '127.0.0.1'


@pytest.mark.parametrize(('old', 'new', 'message'), [
  ('port = 0', 'prot = 0', "no field is called 'prot'; did you mean port"),
  ('port = 0', 'port = "x"', "port is 'x'; expected a whole number"),
  ('port = 0', 'port = true', 'port is True; expected a whole number'),
  ('port = 0', 'port = 70000', 'up to 65535'),
  ('"MOME"', '"' + 'M' * 17 + '"', 'an AE title has 1 to 16'),
  ('"MOME"', r'"CLINIC\\MOME"', "'; an AE title has 1 to 16 ASCII letters, and no backslash"),
  ('"ARCHIVE"', r'"A\tB"', 'destinations: ae_title is'),
  ('"ARCHIVE"', '" "', 'destinations: ae_title is'),
  ('["A", "B"]', r'["A", "B\n"]', 'callers is'),
  ('"localhost"', '"archive..clinic"', "destinations: host is 'archive..clinic'; expected a name"),
  ('port = 0', 'host = ""', "host is ''; expected a name or an address"),
  ('["A", "B"]', '["A", 3]', 'expected a list of texts'),
  ('"rtstruct"', '"masks"', "results: 'masks' is none"),
  ('wait = 2', 'folder = "gs://b/x"', 'folder: gs://b/x is in a bucket; give a place on a disk'),
  ('wait = 2', 'wait = -1', 'wait must be 0 or more'),
  ('[[destinations]]', '[[destination]]', 'no destination; add'),
  ('port = 4242', '', 'destinations: port is missing'),
  ('port = 0', 'port = ', 'no TOML'),
])  # fmt: skip
def test_a_wrong_config_is_explained(old, new, message, tmp_path):
  path = tmp_path / 'node.toml'
  path.write_text(GOOD.replace(old, new, 1))
  with pytest.raises(SettingsError, match='node.toml') as caught:
    settings.read(path)
  assert message in str(caught.value)


def test_a_slip_in_the_prompts_is_told_before_the_first_series():
  slip = Settings((), prompts='liver, pineapple pizza')
  with pytest.raises(SettingsError, match='^prompts: "pineapple pizza".*; ask for those$'):
    node.check_prompts(slip, Threshold())
  node.check_prompts(Settings((), prompts='hepar'), Threshold())
