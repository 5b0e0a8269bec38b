"""Who may import whom: imports point down, lazy ones too."""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = 'input_pipeline', 'mome_jax'

# Room: what it may import of the two packages; only rooms that stand above it. A module is in the
# room of the longest of these names that it begins with. Errors and `remarks` are open to all.
ROOMS = {
  'input_pipeline.stopping': '',
  'input_pipeline.errors': 'input_pipeline.stopping',
  'input_pipeline.files': '',
  'input_pipeline.cli': 'input_pipeline.files',
  'input_pipeline.remarks': '',
  'input_pipeline.progress': '',
  'input_pipeline.control_groups': '',
  'input_pipeline.anatomy': 'input_pipeline.files',
  'input_pipeline.ct': 'input_pipeline.files input_pipeline.anatomy',
  'input_pipeline.sources': 'input_pipeline.files input_pipeline.progress input_pipeline.anatomy '
  'input_pipeline.ct',
  'input_pipeline.bricks': 'input_pipeline.files input_pipeline.cli input_pipeline.anatomy '
  'input_pipeline.ct input_pipeline.sources',
  'input_pipeline.patients': 'input_pipeline.files input_pipeline.sources input_pipeline.bricks',
  'input_pipeline.dedupe': 'input_pipeline.files input_pipeline.cli input_pipeline.progress '
  'input_pipeline.ct input_pipeline.sources input_pipeline.bricks input_pipeline.patients',
  'input_pipeline.prepare': 'input_pipeline.files input_pipeline.cli input_pipeline.progress '
  'input_pipeline.anatomy input_pipeline.ct input_pipeline.sources input_pipeline.bricks '
  'input_pipeline.patients',
  'input_pipeline.batches': 'input_pipeline.anatomy input_pipeline.control_groups '
  'input_pipeline.ct input_pipeline.bricks',
  'input_pipeline.inspect': 'input_pipeline.cli input_pipeline.anatomy input_pipeline.bricks '
  'input_pipeline.batches',
  'input_pipeline': 'input_pipeline',  # the programs
  'mome_jax.errors': 'input_pipeline.errors',
  'mome_jax.shipped': '',
  'mome_jax.runtime': '',
  'mome_jax.ops': '',
  'mome_jax.moe': '',
  'mome_jax.models': 'mome_jax.ops mome_jax.moe',
  'mome_jax.configs': 'input_pipeline.batches',
  'mome_jax.text': 'input_pipeline.anatomy input_pipeline.cli input_pipeline.progress '
  'input_pipeline.files mome_jax.shipped mome_jax.ops',
  'mome_jax.checkpoint': 'input_pipeline.bricks input_pipeline.files input_pipeline.remarks '
  'mome_jax.shipped mome_jax.runtime mome_jax.configs mome_jax.text',
  'mome_jax.weights': 'input_pipeline.cli mome_jax.checkpoint mome_jax.configs mome_jax.models '
  'mome_jax.text',
  'mome_jax.plausibility': 'input_pipeline mome_jax.checkpoint',
  'mome_jax.text.teaching': 'input_pipeline mome_jax.configs mome_jax.text mome_jax.checkpoint',
  'mome_jax.text.pretrain': 'input_pipeline.cli mome_jax.text.teaching',
  'mome_jax.text.calibrate': 'input_pipeline mome_jax.shipped mome_jax.text mome_jax.checkpoint',
  'mome_jax.training': 'input_pipeline mome_jax.shipped mome_jax.runtime '
  'mome_jax.ops mome_jax.moe mome_jax.models mome_jax.configs mome_jax.text mome_jax.checkpoint '
  'mome_jax.weights',
  'mome_jax.inference': 'input_pipeline.anatomy input_pipeline.ct mome_jax.shipped '
  'mome_jax.runtime mome_jax.ops mome_jax.moe mome_jax.models mome_jax.text '
  'mome_jax.checkpoint mome_jax.training',
  'mome_jax.pictures': 'input_pipeline mome_jax.inference',
  'mome_jax.evaluate': 'input_pipeline mome_jax.shipped mome_jax.text mome_jax.checkpoint '
  'mome_jax.training mome_jax.inference mome_jax.pictures',
  'mome_jax.predict': 'input_pipeline mome_jax.__init__ mome_jax.shipped mome_jax.runtime '
  'mome_jax.text mome_jax.checkpoint mome_jax.plausibility mome_jax.inference mome_jax.pictures',
  'mome_jax.serve': 'input_pipeline mome_jax.__init__ mome_jax.shipped mome_jax.runtime '
  'mome_jax.text mome_jax.plausibility mome_jax.inference mome_jax.predict',
  'mome_jax': 'input_pipeline mome_jax',  # the programs
  # What a run does at its edges, and the check of a whole config before it.
  'mome_jax.training.validation': 'input_pipeline mome_jax.runtime mome_jax.models '
  'mome_jax.text mome_jax.checkpoint mome_jax.training mome_jax.inference mome_jax.pictures',
  'mome_jax.training.loop': 'input_pipeline mome_jax.runtime mome_jax.ops mome_jax.models '
  'mome_jax.text mome_jax.checkpoint mome_jax.plausibility mome_jax.training '
  'mome_jax.training.validation mome_jax.pictures',
  'mome_jax.training.compile_ahead': 'input_pipeline.batches mome_jax.runtime mome_jax.models '
  'mome_jax.text mome_jax.training mome_jax.inference',
  'mome_jax.training.config_check': 'input_pipeline mome_jax.configs mome_jax.models mome_jax.text '
  'mome_jax.checkpoint mome_jax.training mome_jax.inference mome_jax.evaluate',
  'mome_jax.plan': 'input_pipeline mome_jax.__init__ mome_jax.runtime mome_jax.models '
  'mome_jax.configs mome_jax.text mome_jax.training mome_jax.training.compile_ahead '
  'mome_jax.training.config_check mome_jax.inference',
}
OPEN = (
  'input_pipeline.errors',
  'input_pipeline.remarks',
  'mome_jax.errors',
  'mome_jax.runtime.jax_errors',
)

# Module -> what it imports against the rules; each goes with the cut of its room.
EXCEPTIONS = {
  ('mome_jax.text.embed', 'mome_jax.weights'),  # room text: reading published weights
  ('mome_jax.text.embedders', 'mome_jax.weights'),
}

# Libraries that only some rooms import; where they must be imported lazily.
LIBRARIES = {
  'tensorflow': ('input_pipeline',),
  'tensorflow_datasets': ('input_pipeline',),
  'apache_beam': ('input_pipeline',),
  'grain': ('input_pipeline',),
  'orbax': ('mome_jax.checkpoint',),
  'clu': ('mome_jax.training',),
  'optax': ('mome_jax.training', 'mome_jax.text.teaching'),
  'matplotlib': ('mome_jax.pictures', 'input_pipeline'),
  'starlette': ('mome_jax.serve',),
  'uvicorn': ('mome_jax.serve',),
}
LAZY = 'tensorflow', 'tensorflow_datasets', 'apache_beam', 'grain'
# What knows arrays and nothing of files.
ARRAYS = 'mome_jax.ops', 'mome_jax.moe', 'mome_jax.models'
FILES = 'os', 'io', 'pathlib', 'shutil', 'tempfile', 'etils', 'nibabel', 'pydicom', 'json'


@functools.cache
def modules():
  """{dotted name: syntax tree} of all modules."""
  trees = {}
  for package in PACKAGES:
    for file in sorted((ROOT / package).rglob('*.py')):
      parts = file.relative_to(ROOT).with_suffix('').parts
      trees['.'.join(parts)] = ast.parse(file.read_text(), str(file))
  return trees


def is_module(name):
  return name in modules() or f'{name}.__init__' in modules()


def begins(name, prefix):
  return f'{name}.'.startswith(f'{prefix}.')


def room(name):
  return max((one for one in ROOMS if begins(name, one)), key=len)


def imports(tree):
  """(dotted name, whether at the top of the module) of all that is imported."""
  inside = {
    id(node)
    for scope in ast.walk(tree)
    if isinstance(scope, ast.FunctionDef | ast.If)
    for node in ast.walk(scope)
  }
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from ((alias.name, id(node) not in inside) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, 'imports are absolute'
      for alias in node.names:
        whole = f'{node.module}.{alias.name}'
        yield (whole if is_module(whole) else node.module), id(node) not in inside


@functools.cache
def all_imports():
  """{dotted name: what it imports, as of `imports`} of all modules."""
  return {name: list(imports(tree)) for name, tree in modules().items()}


def against_the_rules():
  """(module, room) of every import between rooms that ROOMS does not allow."""
  faults = set()
  for name, targets in all_imports().items():
    allowed = {room(name), *OPEN, *ROOMS[room(name)].split()}
    for target, _ in targets:
      package = target.split('.')[0]
      if package in PACKAGES and not {package, room(target), f'{target}.__init__'} & allowed:
        faults.add((name, room(target)))
  return faults


def test_imports_point_down():
  assert against_the_rules() == EXCEPTIONS  # what is no exception any more leaves the list


def test_the_rules_point_down():
  rooms = list(ROOMS)
  for i, (name, allowed) in enumerate(ROOMS.items()):
    for one in allowed.split():
      assert one.endswith('.__init__') or one in rooms[: i + 1], f'{name} -> {one}'


@pytest.mark.parametrize('library', LIBRARIES)
def test_a_library_is_imported_in_its_room_only(library):
  for name, targets in all_imports().items():
    for target, at_top in targets:
      if begins(target, library):
        assert any(begins(name, one) for one in LIBRARIES[library]), f'{name} imports {target}'
        assert not (at_top and library in LAZY), f'{name} imports {target} at its top'


def test_models_know_no_files():
  for name, tree in modules().items():
    if room(name) in ARRAYS:
      used = {target.split('.')[0] for target, _ in all_imports()[name]}
      assert not used & set(FILES), name
      calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
      assert 'open' not in [func.id for func in calls if isinstance(func, ast.Name)], name


def axis_names(tree):
  """Names of mesh axes: 'expert' anywhere, 'data' where a partition is written."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Constant) and node.value == 'expert':
      yield node
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') in ('P', 'PartitionSpec'):
      yield from (n for n in ast.walk(node) if isinstance(n, ast.Constant) and n.value == 'data')


def test_mesh_axes_are_named_in_two_places():
  named = {name for name, tree in modules().items() if any(axis_names(tree))}
  assert named == {'mome_jax.training.sharding', 'mome_jax.moe.capacity'}


def test_a_lazy_import_counts():
  tree = ast.parse('import jax\ndef f():\n  import tensorflow.data\n  from mome_jax import ops\n')
  assert list(imports(tree)) == [
    ('jax', True), ('tensorflow.data', False), ('mome_jax.ops', False)]  # fmt: skip


def named(module):
  """What a module calls something, or exports when it is asked for."""
  tree = modules().get(module) or modules()[f'{module}.__init__']
  for node in ast.walk(tree):
    if isinstance(node, ast.Import | ast.ImportFrom):
      yield from (alias.asname or alias.name for alias in node.names)
    yield getattr(node, 'id', getattr(node, 'name', getattr(node, 'value', None)))


def test_benchmarks_import_what_there_is():
  """Most of them run by hand alone."""
  for file in (ROOT / 'tests' / 'benchmarks').rglob('*.py'):
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.ImportFrom) and node.module.split('.')[0] in PACKAGES:
        for alias in node.names:
          is_there = is_module(f'{node.module}.{alias.name}') or alias.name in named(node.module)
          assert is_there, f'{file}: {node.module}.{alias.name}'


def test_text_is_utf8_wherever_it_is_written():
  """By default Python takes the encoding of the machine."""
  for name, tree in modules().items():
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
      method = ast.unparse(call.func)
      of_text = method.endswith(('.read_text', '.write_text')) and method != 'text_files.read_text'
      if method in ('open', 'os.fdopen'):
        of_text = not any('b' in str(getattr(mode, 'value', '')) for mode in call.args[1:2])
      if of_text:
        assert 'encoding' in [keyword.arg for keyword in call.keywords], f'{name}:{call.lineno}'
