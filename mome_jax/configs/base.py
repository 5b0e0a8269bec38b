"""Defaults of every experiment, each value explained. Not an experiment itself."""

import ml_collections

from input_pipeline.batches import augment


def get_config() -> ml_collections.ConfigDict:
  """Returns the defaults; an experiment must set what is None here."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.profile = 0  # steps to trace, from the third on, into WORKDIR/profile
  config.data_dir = 'data'  # where input_pipeline.prepare wrote
  config.classes = ml_collections.config_dict.placeholder(tuple)  # docs/classes.md lists them
  # Classes beyond those, as dicts of name, prompt, synonyms, parent: see anatomy.Template.extend.
  # Those that a prepared source brings along are added when training starts.
  config.new_classes = ()
  # Classes that too few patients taught: `predict` makes their masks where they are asked for by
  # name only, and says what they are.
  config.experimental = ()

  config.data = ml_collections.ConfigDict()
  config.data.sources = ml_collections.config_dict.placeholder(tuple)
  # Cross-validation, of sources prepared with --folds: which of how many parts of the training and
  # validation cases is held out; -1: what the preparation held out.
  config.data.fold = -1
  config.data.folds = 5
  config.data.spacing = (1.5, 1.5, 1.5)  # mm of the network's grid, as given to prepare
  config.data.windows = ((-175.0, 250.0),)  # HU, one input channel each
  config.data.patch = (96, 96, 96)
  config.data.foreground = 0.67  # share of patches centred on a supervised class
  # How often each dataset is drawn; or 'classes', see batches/sampler.py.
  config.data.balance = 'sources'
  # Of datasets by name, times that: (('phantom_liver', 2.0),); the others have 1.
  config.data.weights = ()
  config.data.cache_mb = 1024
  # What makes the batches, which are the same: 'tf.data', threads; 'grain', processes without
  # TensorFlow; 'auto', tf.data where TensorFlow is installed.
  config.data.loader = 'auto'
  config.data.num_parallel = 0  # patches made at the same time; 0: one a processor, at most 32
  config.data.augment = ml_collections.ConfigDict(dict(augment.DEFAULTS))  # explained there
  # Of datasets by name, what is otherwise: (('phantom_liver', {'p_warp': 0.25}),).
  config.data.augment_of = ()

  config.text = ml_collections.ConfigDict()
  config.text.mode = 'joint'  # a small T5 beside the model; 'frozen': vectors made once
  config.text.vectors = ''  # of frozen text: what mome_jax.text.embed wrote, or CUM's file
  # The sizes are those of the encoder of the package; another one that init names brings its own.
  config.text.vocab_size = 2048
  config.text.max_length = 40
  config.text.d_model = 128
  config.text.d_kv = 32
  config.text.d_ff = 256
  config.text.num_layers = 2
  config.text.num_heads = 4
  config.text.feed_forward = 'gated-gelu'

  config.model = ml_collections.ConfigDict()
  config.model.backbone = ml_collections.ConfigDict()
  config.model.backbone.name = 'unet'
  config.model.backbone.size = 'base'
  config.model.remat = False  # recompute each stage in the backward pass: less memory, more time
  # Or 'finest', the last decoder layer alone: the CLIP-Driven Universal Model, the baseline of any
  # config. Nothing is mixed then: scales, top_k, router_inputs, anchor, router_apart and the banks
  # of other scales may stay, unread.
  config.model.experts = 'pyramid'
  config.model.scales = ()  # decoder layers that take part; () is all
  config.model.top_k = 0  # scales each class uses at a voxel; 0 is all
  config.model.router_inputs = 'text+vision'  # or 'text', 'vision', 'uniform'
  # What the mixture departs from as it learns to: 'none', 'finest' (with init.checkpoint of CUM) or
  # 'equal', the mean of all scales.
  config.model.anchor = 'none'
  # With an anchor: experts and backbone learn as under it alone, the router from the mixture.
  config.model.router_apart = False
  config.model.width = 256
  config.model.router_width = 32
  config.model.head_activation = 'leaky_relu'  # 'relu' is what published weights expect
  config.model.class_chunk = 8  # classes whose maps are made at the same time
  # Or 'float32': on a TPU and a GPU too, where that takes several times as long; no TF32.
  config.model.dtype = 'bfloat16'
  config.model.bank = ml_collections.ConfigDict()
  config.model.bank.scales = ()  # decoder layers that are banks of sparse experts
  config.model.bank.num_experts = 8
  config.model.bank.top_k = 2  # experts of each voxel
  config.model.bank.expansion = 2  # hidden width of an expert over its input width
  config.model.bank.executor = 'dense'  # 'capacity' pays from num_experts / top_k of about 4 on
  config.model.bank.capacity_factor = 2.0  # neighbours choose alike: well above a balanced load

  config.init = ml_collections.ConfigDict()
  config.init.checkpoint = ''  # model folder or workdir to start from; '' starts from random
  # Start of the encoder of joint text, trained along or not. 'shipped': the one of init.checkpoint,
  # or else that of the package, which knows anatomy; a folder: of a model, or of a T5 as Hugging
  # Face publishes it; '': random.
  config.init.text = 'shipped'
  # Whether the learning rate is a quarter of the start's, as `finetune` has it.
  config.init.finetunes = False

  config.train = ml_collections.ConfigDict()
  config.train.steps = 100_000
  config.train.batch_size = 8  # of an optimizer step, over all devices
  # Parts of a batch that are computed one after another: the memory of one, the gradient of all.
  config.train.accumulate = 1
  config.train.optimizer = 'adamw'  # or 'nadamw', 'lion', 'lamb', 'sgd' (nnU-Net's): optimizer.py
  config.train.schedule = 'cosine'  # after the warm-up; or 'linear', 'polynomial', 'constant'
  config.train.learning_rate = 1e-4
  # Relative to learning_rate. Of the matrices of the head generator and the router: a generated
  # weight is a sum over 512 inputs, so that one Adam step moves it by hundreds of learning rates.
  config.train.generator_rate = 0.1
  # Of the router's biases and priors and the share of an anchored mixture, which are no weights.
  config.train.mixture_rate = 1.0
  # Of the text encoder of joint text. 0: it stays as it was taught; one that starts at random has
  # all to learn: 1.
  config.train.text_rate = 0.0
  # Of the layer that reads such an encoder's vectors, on top of generator_rate: they are dense and
  # long, so that a step for one class moves all others about as far. Frozen vectors go without.
  config.train.text_layer_rate = 0.02
  # Further factors by path, first match wins: (('model/backbone', 0.1), (r'.*/bias', 2.0)).
  config.train.rates = ()
  config.train.freeze = ()  # paths that stay as they begin: ('model/backbone', 'text')
  # Steps in a row whose loss or gradient may be NaN or infinite: they are left out. 0: none may.
  config.train.skip_nonfinite = 10
  config.train.warmup_steps = 1000
  config.train.weight_decay = 1e-5
  config.train.clip_norm = 1.0
  config.train.ema_decay = 0.999
  config.train.log_dice = True  # -log(Dice), which no small class escapes; or 1 - Dice
  config.train.expert_loss = 0.1  # supervision of each coarser expert on its own
  config.train.text_loss = 1.0  # telling each class's prompts from the others'; with text_rate
  # Prompts a step, beside the classes, of anatomy that is no class (text/negatives.py), which must
  # give empty masks; 0 is none. Of joint text: frozen vectors know the classes' prompts alone.
  config.train.negatives = 4
  # A mask in the place of an organ is a hundredth of a patch, and so is its mean BCE.
  config.train.negative_loss = 10.0
  config.train.absent_loss = 10.0  # the same of classes that a scan cannot show
  # The same outside the patient, of classes without a label. Classes that are contoured over some
  # slices learn there as part of their own mean, whatever this is.
  config.train.outside_loss = 10.0
  config.train.balance_loss = 1e-2  # equal use of the experts of a bank
  config.train.z_loss = 1e-4  # small gate logits of a bank
  config.train.log_every = 50
  config.train.checkpoint_every = 1000
  config.train.keep_checkpoints = 2

  # While training: averaged parameters on patches of held-out scans, every so many steps and at the
  # end; 0: never.
  config.validation = ml_collections.ConfigDict()
  config.validation.every = 0
  # Training scans of each dataset that are set aside for it, whole patients, at most a fifth; the
  # best checkpoint is chosen on them. 0: the sources' validation scans are watched, and nothing is
  # chosen: the run is scored on those.
  config.validation.cases = 0
  config.validation.patches = 64
  config.validation.smoothing = 0.5  # share of the earlier validations in what is chosen by
  config.validation.patience = 0  # validations without a better one, after which to end; 0: never
  config.validation.picture = True  # draw one scan each time

  config.evaluation = ml_collections.ConfigDict()
  # Of a workdir: 'last', or 'best', which needs validation.cases. Prediction takes the same.
  config.evaluation.checkpoint = 'last'
  config.evaluation.window = (96, 96, 96)
  config.evaluation.overlap = 0.5
  config.evaluation.batch_size = 0  # windows a call; 0: by the device's memory, 1 on the CPU
  # 'default' asks with the sentences of training, 'held_out' with names that training never showed.
  config.evaluation.prompts = 'default'
  # Held-out scans to score: 'validation', 'test', 'all' (a table each), or 'auto': validation, and
  # test where there are no validation scans.
  config.evaluation.split = 'auto'
  # Average with the mirror image, in which left and right prompts change places: twice the time.
  config.evaluation.tta = False
  config.evaluation.pictures = 4  # cases to draw
  config.evaluation.postprocess = ()  # rules of postprocess.py, such as ('sides', 'largest')

  config.mesh = ml_collections.ConfigDict()
  config.mesh.data = -1  # -1: all devices that expert leaves
  config.mesh.expert = 1  # devices that share the sparse experts of a bank
  config.mesh.spatial = False  # expert shards the depth of patches too large for one device
  config.mesh.fsdp = False  # parameters and optimizer moments are spread over data, not copied
  return config
