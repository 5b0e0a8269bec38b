"""Settings of the demo that train in seconds, on phantoms prepared at 12 mm."""

STEPS = 8  # the same in all: the schedule is part of the program, which is then compiled once
SETTINGS = (
  '--config.data.spacing=(12.0, 12.0, 12.0)',
  '--config.data.patch=(16, 16, 16)',
  '--config.evaluation.window=(32, 32, 32)',
  '--config.model.backbone.size=tiny',
  '--config.model.scales=(0, 1)',  # two of four: it compiles in half the time
  '--config.train.batch_size=2',
  f'--config.train.steps={STEPS}',
  '--config.validation.every=0',
)
