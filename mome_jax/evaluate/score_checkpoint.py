"""Scores of a checkpoint on the held-out scans of its sources."""

import dataclasses
import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from input_pipeline import bricks, errors, progress
from input_pipeline.anatomy import IGNORE_CODE, Template
from input_pipeline.cli import spoken
from input_pipeline.patients import folds
from mome_jax import checkpoint
from mome_jax.checkpoint import training_cases
from mome_jax.evaluate import froc, held_out, metrics, patients, score_files
from mome_jax.evaluate.case_pictures import CasePictures
from mome_jax.inference import router_maps
from mome_jax.inference.ensemble import open_model
from mome_jax.inference.model import Model
from mome_jax.inference.segmentation import Segmentation
from mome_jax.inference.segmenter import Segmenter
from mome_jax.text import prompts
from mome_jax.training import multihost

# What of `config.evaluation` changes the scores of a checkpoint's scans.
_SETTINGS = ('window', 'overlap', 'tta', 'postprocess')


def settings(config: ConfigDict) -> dict[str, Any]:
  """The values of `config.evaluation` that change scores, as a summary notes them."""
  return json.loads(json.dumps({name: config.evaluation[name] for name in _SETTINGS}))


def evaluate(
  config: ConfigDict,
  workdir: epath.PathLike,
  asked: Collection[str] = (),
  *,
  beside: Sequence[epath.Path] = (),
) -> dict[str, Any]:
  """Scores a model, or an ensemble, on the held-out scans of its sources.

  Writes `evaluation/` (see `score_files.write`; of test scans `evaluation_test/`) and
  `pictures/*.png` into `workdir` and prints the table. Scans that the model was trained on
  are left out, and said to be. Several hosts share the scans, and each segments its own on its
  own devices; the lead process draws its first ones, and computes and writes the scores of all.
  With `evaluation.prompts='held_out'` there are no pictures and the folder
  is `evaluation_held_out`.

  Args:
    config: see `configs/base.py`; usually the model's own (`checkpoint.load_config`).
    workdir: of a training run, of which the checkpoint that `evaluation.checkpoint` says is scored;
      a model folder, or one with an `ensemble.json`; of `shipped` and `hf:ORG/NAME` results go to
      `runs/shipped` and `runs/ORG--NAME`.
    asked: names of values of the config that count for all models of an ensemble.
    beside: folders of models that this one will be compared with: what they were trained on is left
      out, too.

  Returns:
    The summary, of the first split where `evaluation.split` asks for all; see `metrics.summarize`.

  Raises:
    CheckpointError: if there is no checkpoint.
    HeldOutError: if `evaluation.split` names nothing, or no scan is left to score.
    PromptError: if `evaluation.prompts` names nothing, or a class has no held-out name.
  """
  kind = config.evaluation.prompts
  if kind not in prompts.BY_KIND:
    hint = errors.suggest(kind, prompts.BY_KIND)
    raise prompts.PromptError(f'evaluation.prompts is {kind!r}; {hint}')
  place = checkpoint.results_of(workdir)
  folders = [checkpoint.folder_of(member) for member in checkpoint.members(workdir)]
  names = tuple(config.classes)
  template = bricks.read_template(config.data_dir, config.data.sources, config.new_classes)
  parts = held_out.find(
    config.data_dir,
    config.data.sources,
    template,
    split=config.evaluation.split,
    trained=training_cases.of_models([*folders, *beside]),
    fold=_held_out_by_fold(config, folders[0]),
  )
  model = open_model(workdir, config, asked=asked)
  texts = prompts.BY_KIND[kind](names, template)
  _check_vectors(model, texts)
  segmenter = model.segmenter(names, texts, template)
  explainer = router_maps.make_explainer(model, names, texts, segmenter)
  run = _Evaluation(place, config, model.step, template, tuple(texts), segmenter, explainer)
  return [run.score(part) for part in parts][0]


def _held_out_by_fold(
  config: ConfigDict, model: epath.Path
) -> dict[str, frozenset[bricks.Key] | None]:
  """What the fold of a model holds out: it was dealt over all sources of its training.

  Another fold than the model's, which somebody asks for, is dealt over the sources to score where
  not all of them are of its training.
  """
  data, trained = config.data, checkpoint.load_config(model).data
  own = (data.fold, data.folds) == (trained.fold, trained.folds)
  dealt = trained.sources if own or {*data.sources} <= {*trained.sources} else data.sources
  return folds.by_source(config.data_dir, data.sources, dealt, data.fold, data.folds)


def _check_vectors(model: Model, texts: Sequence[str]) -> None:
  """TextVectorError, with the command that adds them, where a frozen member lacks some of them."""
  for member in model.members:
    if member.vectors is not None:
      folder = member.folder
      embed = spoken(f'python -m mome_jax.text.embed --output={folder}/text.npz --prompts TEXT ...')
      member.vectors(
        texts,
        f'add them with {embed} --new-classes={folder}/config.json --model=FOLDER, the encoder',
      )


@dataclasses.dataclass(frozen=True)
class _Evaluation:
  """What the splits of an evaluation share.

  Attributes:
    workdir: that the results go to.
    config: of the model, with the evaluation that was asked for.
    step: of training that the model was saved at, or None.
    template: of the class names.
    texts: prompts, one for each class.
    segmenter: of these prompts.
    explainer: of these prompts, or None where the model mixes no scales.
  """

  workdir: epath.Path
  config: ConfigDict
  step: int | None
  template: Template
  texts: tuple[str, ...]
  segmenter: Segmenter
  explainer: router_maps.Explainer | None

  @property
  def unseen(self) -> bool:
    """Whether the prompts are such as training has not seen."""
    return self.config.evaluation.prompts == 'held_out'

  def score(self, part: held_out.HeldOut) -> dict[str, Any]:
    """The summary of one split, which the lead process writes."""
    lead = multihost.is_lead()
    number = self.config.evaluation.pictures if lead and not self.unseen else 0
    several = len(self.config.data.sources) > 1
    pictures = CasePictures(self.workdir / 'pictures', number, self.explainer, several=several)
    if lead and not self.unseen:
      with errors.writing(pictures.folder):
        pictures.folder.mkdir(parents=True, exist_ok=True)
    rows, counts = self._segment(part, pictures)
    rows, counts = multihost.gather_rows(rows), multihost.gather_rows(counts)
    rows.sort(key=lambda row: (row['source'], row['case']))  # the same with any number of hosts
    if not lead:
      return metrics.summarize(rows)
    return self._write(part, rows, froc.summarize(counts), pictures)

  def _segment(
    self, part: held_out.HeldOut, pictures: CasePictures
  ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of scores and counts of lesions, of the scans of this host."""
    rows, counts = [], []
    first, hosts = jax.process_index(), jax.process_count()
    total = len(range(first, len(part), hosts))
    quiet = not multihost.is_lead()
    for case in progress.bar(part.read(first, hosts), total=total, desc='evaluate', disable=quiet):
      levels = froc.Levels(self.segmenter.names, case.image.shape)
      watch = pictures.watch()
      spacing = case.geometry.spacing
      segmentation = self.segmenter(case.image, spacing, levels.add, watch=watch)
      rows += score_case(case, segmentation, part.patients.get(case.key, ''))
      counts += count_lesions(case, levels, self.template)
      with errors.writing(pictures.folder):
        pictures.draw(case, segmentation, watch)
    return rows, counts

  def _write(
    self,
    part: held_out.HeldOut,
    rows: list[dict[str, Any]],
    points: list[dict[str, Any]],
    pictures: CasePictures,
  ) -> dict[str, Any]:
    folder = self.workdir / (score_files.FOLDERS[part.split] + ('_held_out' if self.unseen else ''))
    rules = self.segmenter.settings.rules
    step = '' if self.step is None else f', step {self.step}'
    title = f'{part.title()}{step}, post-processing: {", ".join(rules) or "none"}'
    if self.unseen:
      title += ', prompts not seen in training'
    origin = part.origin() | {'step': self.step, 'postprocess': rules, 'prompts': self.texts}
    origin['evaluation'] = settings(self.config)
    summary, table = score_files.write(folder, rows, title=title, origin=origin, points=points)
    print(f'\n{table}\n\nTable and scores: {folder}')
    if not self.unseen:  # after the scores: a picture that cannot be written costs none of them
      with errors.writing(pictures.folder):
        pictures.finish('' if part.split == 'validation' else f'_{part.split}', points)
      print(f'Pictures: {pictures.folder}')
    return summary


def score_case(
  case: bricks.VolumeRecord, segmentation: Segmentation, patient: str = ''
) -> list[dict[str, Any]]:
  """Scores of every class that the case labels, where it was contoured and nothing is ignored.

  Args:
    case: with its labels.
    segmentation: of its image.
    patient: of `held_out.HeldOut.patients`; '' where the patient has no other scan.

  Returns:
    One row per (case, class), as `score_files.score` gives it.
  """
  spacing = case.geometry.spacing
  rows = []
  for name, truth in truths(case, segmentation.names, segmentation.template):
    mask = contoured(case, name, segmentation.mask(name))
    absent = name in case.absent
    row = score_files.score(case.source, case.name, name, mask, truth, spacing, absent=absent)
    rows.append(row | {'split': case.split, patients.FIELD: patient})
  return rows


def count_lesions(
  case: bricks.VolumeRecord, levels: froc.Levels, template: Template
) -> list[dict[str, Any]]:
  """Counts of every lesion class that the case labels, at every threshold; see `froc.count`.

  A scan that cannot show a lesion says nothing of how it is detected.

  Args:
    case: with its labels.
    levels: of its image.
    template: of the class names.
  """
  rows = []
  shown = [name for name in levels.names if name not in case.absent]
  for name, truth in truths(case, shown, template):
    passed = contoured(case, name, levels.of(name))
    rows += froc.count(passed, truth, case.geometry.spacing, name)
  return rows


def truths(
  case: bricks.VolumeRecord, names: Sequence[str], template: Template
) -> Iterator[tuple[str, np.ndarray]]:
  """Name and mask, inside the heights where it was contoured, of each class that is known."""
  for name in names:
    if name in case.supervised:
      yield name, contoured(case, name, template.code_table([name])[case.codes, 0])


def contoured(case: bricks.VolumeRecord, name: str, array: np.ndarray) -> np.ndarray:
  """The part of a map of a class that counts: where it was contoured and nothing is ignored."""
  array = array * (case.codes != IGNORE_CODE)
  return metrics.restrict(array, case.geometry.spacing, case.heights(name))
