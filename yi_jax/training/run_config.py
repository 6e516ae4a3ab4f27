"""Every key of a run, its default, and the checks made before any compiling.

An experiment file starts from `base()` and changes what it means to change;
`resolve` turns the result into a `Run`, the typed core the training step is
built from, or refuses it with one sentence. Nothing here needs ml_collections
but `base`: a script on a bare accelerator image uses `defaults` directly.
"""

import dataclasses
import math
import re
from typing import Any

from yi_jax import paths, spelling
from yi_jax.data import lengths as lengths_lib
from yi_jax.models import config as model_config
from yi_jax.models import lora, transformer
from yi_jax.training import optimizer, plateau

_AT_LEAST_ONE = (
  'data.length',
  'data.batch_tokens',
  'train.steps',
  'train.log_every',
  'train.max_bad_steps',
  'checkpoint.every',
  'checkpoint.keep',
  'optimizer.accumulate_steps',
)
_NOT_NEGATIVE = (
  'train.eval_every',
  'train.eval_rows',
  'train.spike_factor',
  'train.tokens',
  'train.rollback',
  'train.hang_seconds',
  'sample.heldout',
  'checkpoint.local_every',
)
# optimizer.scale_with_batch -> factor of the learning rate, by that of the
# batch. Linear: Goyal et al. 2017, for SGD. Square root: Malladi et al. 2022,
# for Adam.
_SCALES = {
  'none': lambda ratio: 1.0,
  'sqrt': lambda ratio: ratio**0.5,
  'linear': lambda ratio: ratio,
}


def defaults() -> dict[str, Any]:
  """Returns every key of a run with its default, as nested plain dicts."""
  return {
    # Decides the fresh weights and the order of the rows.
    'seed': 0,
    # A workdir whose newest parameters start this run; '' means fresh weights.
    'init_from': '',
    'model': {
      # One of yi_jax.models.config.preset_names(), or 'init_from': the model
      # whose weights start the run.
      'preset': 'tiny',
      # Fields of ModelConfig that differ from the preset; None keeps it.
      'overrides': {
        field.name: None
        for field in dataclasses.fields(model_config.ModelConfig)
      },
    },
    # Adapters that are trained instead of the model, see models/lora.py. They
    # are in WORKDIR/adapter at the end, as PEFT has them.
    'lora': {
      # Of the change to each kernel; 0 trains the model itself.
      'rank': 0,
      # The change is alpha / rank times A B; with rslora alpha / sqrt(rank).
      'alpha': 16.0,
      'rslora': False,
      # Regex over the names of kernels.
      'targets': '.*/(self_attn|mlp)/.*/kernel',
      # Bits of the numbers of these kernels: 32, or 8 to save memory.
      'base_bits': 32,
    },
    'data': _data_defaults(),
    'optimizer': {
      # Peak rate of AdamW.
      'learning_rate': 1e-3,
      # 'cosine', 'constant' or 'wsd' (warm up, stay, decay).
      'schedule': 'cosine',
      # Steps of linear warm-up.
      'warmup_steps': 100,
      # Rate at the last step as a share of the peak ('cosine' and 'wsd').
      'final_fraction': 0.1,
      # Share of the steps at the end in which 'wsd' decays.
      'decay_fraction': 0.2,
      # Decay of the first and second moments a step.
      'betas': (0.9, 0.95),
      # Added to the root of the second moment.
      'eps': 1e-8,
      # Decoupled, times the learning rate; on matrices inside the layers and
      # the output matrix only.
      'weight_decay': 0.1,
      # Largest global norm of a gradient; 0 does not clip.
      'clip_norm': 1.0,
      # Weight of log(Z)^2 in the loss, which keeps logits small; 0 is none.
      'z_loss': 0.0,
      # Noise on embeddings while training (NEFTune, Jain et al. 2023): uniform
      # up to neftune_alpha / sqrt(tokens of the segment * hidden_size).
      'neftune_alpha': 0.0,
      # Regex over whole parameter names such as layers/self_attn/q_proj/kernel;
      # parameters that do not match stay as they are. With lora.rank, '.*' is
      # the adapters alone.
      'trainable': '.*',
      # Pieces a batch is cut into, one after the other, to save memory.
      'accumulate_steps': 1,
      # How learning_rate follows data.batch_tokens: 'none', 'sqrt' (times the
      # root of batch_tokens / reference_batch_tokens; the rule for Adam) or
      # 'linear' (times that ratio). The number of devices changes nothing: the
      # batch is the global one.
      'scale_with_batch': 'none',
      # Tokens a step that learning_rate is meant for.
      'reference_batch_tokens': 0,
    },
    'train': {
      # Updates in all, at most; the schedule ends there.
      'steps': 1000,
      # Ends the run earlier, with the step that reads so many tokens in all;
      # 0: after train.steps. For batches that grow: their steps are not known.
      'tokens': 0,
      # Steps between two lines of metrics.
      'log_every': 10,
      # Steps between two evaluations of held-out text; 0: only at the end.
      'eval_every': 0,
      # Evaluates the weights that the run starts from, too, as step 0.
      'eval_first': False,
      # Held-out rows of data.length read a language, or as many tokens in rows
      # of another length; 0: all.
      'eval_rows': 0,
      # First position of each bucket whose held-out loss is told apart, from
      # 0 on; () is 0, 1024, 2048, 4096 ... for rows of more than 4,096 tokens.
      'eval_buckets': (),
      # Updates skipped in a row (loss not finite, or a spike) before giving up.
      'max_bad_steps': 10,
      # A loss or gradient norm this many times its running mean is a spike;
      # 0 skips only what is not finite.
      'spike_factor': 10.0,
      # Times the run may, instead of giving up, go back to the last checkpoint
      # before the skipped updates and leave their rows out.
      'rollback': 0,
      # Seconds after which a step that does not end is taken for hung (an
      # evaluation or a save after four times that): the process shows its
      # stacks and exits with code 3. 0 waits for ever.
      'hang_seconds': 1800,
      # Write the row_id of every row read to WORKDIR/rows/PROCESS.jsonl.
      'log_rows': False,
      # Steps to profile, e.g. '10-12'; '' profiles nothing.
      'profile': '',
    },
    'checkpoint': {
      # Steps between two checkpoints; one more is written at the end.
      'every': 500,
      # Checkpoints kept, the newest ones.
      'keep': 3,
      # Steps between two fast checkpoints on each host's own disk; 0: none.
      'local_every': 0,
      # Where those are; '' is yi_jax in the folder for temporary files.
      'local_folder': '',
    },
    'sample': {
      # Text the trained model continues at the end, into report.json.
      'prompts': (),
      # Whether they are questions, in the format of data.chat.template.
      'chat': False,
      # Tokens it adds to each.
      'tokens': 48,
      # Held-out prompts of each task of conversations that it answers: the
      # report tells how many answers end. 0: none.
      'heldout': 0,
    },
    'mesh': {
      # Devices along each axis; -1 takes those that are left.
      'data': 1,
      'fsdp': -1,
      'context': 1,
      'tensor': 1,
      'stage': 1,
      # What is cut over them, one of yi_jax.sharding.rules.STRATEGIES; 'auto'
      # takes the one that the axes in use call for.
      'strategy': 'auto',
      # Pieces in which a batch goes through the stages (sharding/pipeline.py):
      # a multiple of `stage`, the more the less a stage waits.
      'microbatches': 1,
    },
  }


def _data_defaults() -> dict[str, Any]:
  """Returns the section `data` of `defaults`."""
  return {
    # Where raw files, vocabularies and packed rows live; a relative path
    # starts at the repository.
    'root': 'data',
    # What is read, one of yi_jax.data.mixtures, or the path of a .json that
    # launch/mixture_search.py has written.
    'mixture': 'quickstart',
    # Task name -> rate, instead of the mixture's own. With none set, those
    # are kept: --config.data.rates.en_books_plays=1 reads plays alone.
    'rates': {},
    # Task of conversations -> how many of them are read (chosen by hash, the
    # fewer among the more); all where none is set. Packs nothing anew.
    'samples': {},
    # Other rates later in the run: ((first token, {task: rate, ...}), ...),
    # tokens counted over the whole run. A stage reads nothing but its tasks.
    'stages': (),
    # Folder name below ROOT/vocabularies, and its size in pieces when
    # `prepare` has to train it. Or a path with a '/': the tokenizer of that
    # checkpoint (folder or .gguf), its size being 0 here or what it has.
    'vocabulary': 'quickstart',
    'vocabulary_size': 8192,
    # Tokens a row.
    'length': 512,
    # Longer or shorter rows later in the run, the tokens a step being kept:
    # ((first token, tokens a row), ...), tokens counted as in `stages`. A
    # length begins with the next step.
    'lengths': (),
    # Text whose documents are long, see yi_jax/data/long_documents.py.
    'long': {
      # Tasks that are read so: sections of a document put together again, and
      # then what follows here. () is none; all keep their rates.
      'tasks': (),
      # How often a document is read by its length: ((first tokens of a bucket,
      # weight), ...), from 0 on. () reads each once.
      'upsample': (),
      # Order of the documents: 'given', as they are read, or 'similar', each
      # followed by the one most like it, so that a long row has one subject.
      'join': 'similar',
      # What a token sees: the 'document' it belongs to, or all of the 'row'
      # before it, documents that were joined included.
      'attend': 'document',
    },
    # Tokens a step, over all devices: a multiple of every length.
    'batch_tokens': 4096,
    # A batch that grows whenever the loss stops falling: while it is small,
    # many noisy steps; then fewer, better ones (McCandlish et al. 2018, Smith
    # et al. 2018). The rule and its numbers are ours, see training/plateau.py.
    'batch_growth': {
      # Steps of each of the two stretches whose mean losses are compared; 0
      # keeps the batch as it is.
      'window': 0,
      # The loss falls while a stretch has less than the one before, by at
      # least this share of it.
      'least_gain': 0.002,
      # A batch becomes so many times as large, a whole number.
      'factor': 2,
      # Tokens a step that no batch exceeds.
      'most_tokens': 0,
    },
    # Documents kept away from training: this share of them, and at least
    # so many bytes a language.
    'heldout_fraction': 0.01,
    'heldout_bytes': 200_000,
    # Tasks of conversations.
    'chat': {
      # Their format, one of yi_jax.data.chatml.TEMPLATES.
      'template': 'chatml',
      # What counts the same in the loss: each 'token' that the assistant
      # wrote, or each 'sample', however long its answers are.
      'weigh': 'token',
      # Leaves out records that are no conversations instead of stopping.
      'skip_invalid': False,
    },
  }


def base() -> Any:
  """Returns the defaults as a locked ConfigDict, for experiments to change."""
  import ml_collections  # not on every accelerator image
  from ml_collections import config_dict

  from yi_jax.data import mixtures

  config = ml_collections.ConfigDict(defaults())
  overrides = ml_collections.ConfigDict()
  for field in dataclasses.fields(model_config.ModelConfig):
    kind = field.type if isinstance(field.type, type) else tuple
    kind = kind if kind in (int, float, bool, str) else tuple
    overrides[field.name] = config_dict.placeholder(kind)
  # Its fields one by one, for the command line.
  kinds = dict(rope_type=str, original_max_position_embeddings=int)
  scaling = {
    field.name: config_dict.placeholder(kinds.get(field.name, float))
    for field in dataclasses.fields(model_config.RopeScaling)
  }
  del overrides['rope_scaling']
  overrides['rope_scaling'] = ml_collections.ConfigDict(scaling)
  config.model.overrides = overrides
  for key, kind in (('rates', float), ('samples', int)):
    config.data[key] = ml_collections.ConfigDict(
      {name: config_dict.placeholder(kind) for name in mixtures.TASKS}
    )
  return config.lock()


@dataclasses.dataclass(frozen=True)
class Run:
  """What the training step is built from, checked.

  Attributes:
    model: the model.
    optimizer: the optimizer's keys.
    steps: updates in all; the schedule ends there.
    tokens: read in all at which the run ends earlier, 0 for none.
    length: T, tokens a row.
    rows: B, rows a step over all devices.
    lengths: of the whole run, see `data.lengths.schedule`; the step knows
      only `length` and `rows`, see training/phases.py.
    growth: when the batch grows.
    max_bad_steps: skipped updates in a row that end the run.
    spike_factor: see `defaults`.
    strategy: what is cut over which mesh axis, see sharding/rules.py.
    microbatches: see `defaults`, in the section `mesh`.
    seed: of what is random in a step.
  """

  model: model_config.ModelConfig
  optimizer: optimizer.Settings
  steps: int
  length: int
  rows: int
  lengths: lengths_lib.Schedule
  growth: plateau.Settings
  tokens: int = 0
  max_bad_steps: int = 10
  spike_factor: float = 0.0
  strategy: str = 'auto'
  microbatches: int = 1
  seed: int = 0


def resolve(config: Any) -> Run:
  """Checks a run's config and returns its typed core.

  Args:
    config: ConfigDict or nested dict with the keys of `defaults`.

  Raises:
    ValueError: naming the first key that is wrong, and the cure.
  """
  config = to_dict(config)
  _check_keys(config, defaults())
  for section in ('optimizer', 'lora', 'train'):
    for name, value in config[section].items():
      if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f'{section}.{name} is {value}, and no finite number')
  data, train = config['data'], config['train']
  model = resolve_model(config)
  if data['vocabulary_size'] > model.vocab_size:
    raise ValueError(
      f'data.vocabulary_size ({data["vocabulary_size"]}) exceeds the '
      f'{model.vocab_size} rows of the embedding; set '
      'model.overrides.vocab_size'
    )
  for key in _AT_LEAST_ONE:
    section, name = key.split('.')
    if config[section][name] < 1:
      raise ValueError(f'{key} must be at least 1, not {config[section][name]}')
  for key in _NOT_NEGATIVE:
    section, name = key.split('.')
    if config[section][name] < 0:
      raise ValueError(f'{key} must not be negative')
  asks = config['sample']['prompts'] or config['sample']['heldout']
  if asks and config['sample']['tokens'] < 1:
    raise ValueError('sample.tokens must be at least 1')
  growth = plateau.Settings(**data['batch_growth'])
  plateau.check(growth, data['batch_tokens'])
  _check_buckets(list(train['eval_buckets']))
  profile_range(train['profile'])
  section = _scaled(config['optimizer'], data)
  if model.lora and section['trainable'] == '.*':
    section['trainable'] = '.*/lora_[AB]'
  settings = optimizer.Settings(**section)
  run = Run(
    model=model,
    optimizer=settings,
    steps=train['steps'],
    length=data['length'],
    rows=data['batch_tokens'] // data['length'],
    lengths=_lengths(config, model),
    growth=growth,
    tokens=math.ceil(train['tokens']),
    max_bad_steps=train['max_bad_steps'],
    spike_factor=train['spike_factor'],
    strategy=config['mesh']['strategy'],
    microbatches=config['mesh']['microbatches'],
    seed=config['seed'],
  )
  optimizer.check(settings, run.steps, transformer.param_axes(model))
  _check_end(run)
  if run.rows % settings.accumulate_steps:
    raise ValueError(
      f'{run.rows} rows a step cannot be cut into '
      f'optimizer.accumulate_steps = {settings.accumulate_steps} equal pieces'
    )
  return run


def _check_buckets(firsts: list[Any]) -> None:
  whole = all(isinstance(first, int) for first in firsts)
  if firsts and (not whole or firsts[0] or firsts != sorted(set(firsts))):
    wanted = 'whole numbers that rise from 0'
    raise ValueError(f'train.eval_buckets are {wanted}, not {firsts}')


def _check_end(run: Run) -> None:
  """Refuses to end a run in tokens before its rate has fallen."""
  grown = run.growth.most_tokens if run.growth.window else 0
  before = max(run.rows * run.length, grown) * (run.steps - 1)
  if run.optimizer.schedule != 'constant' and 0 < run.tokens <= before:
    raise ValueError(
      f'train.tokens ({run.tokens:,}) may end the run before step {run.steps:,},'
      f' where the {run.optimizer.schedule} schedule ends: the rate would not '
      "have fallen. Take optimizer.schedule = 'constant', or train.tokens = 0"
    )


def _lengths(
  config: dict[str, Any], model: model_config.ModelConfig
) -> lengths_lib.Schedule:
  """Returns the lengths of a run if model and batch can have them."""
  data = config['data']
  found = lengths_lib.schedule(data['length'], data['lengths'])
  for number, (_, length) in enumerate(found):
    key = 'data.lengths' if number else 'data.length'
    if length > model.max_position_embeddings:
      raise ValueError(
        f'{key} ({length}) is longer than the {model.max_position_embeddings} '
        f'positions of {config["model"]["preset"]}; shorten it or raise '
        'model.overrides.max_position_embeddings'
      )
    if data['batch_tokens'] % length:
      raise ValueError(
        f'data.batch_tokens ({data["batch_tokens"]}) must be a multiple of '
        f'{key} ({length})'
      )
  return found


def _scaled(section: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
  """Returns the optimizer's keys with the learning rate of this batch."""
  section = dict(section)
  rule = section.pop('scale_with_batch')
  reference = section.pop('reference_batch_tokens')
  if rule not in _SCALES:
    raise ValueError(
      f'optimizer.scale_with_batch is one of {", ".join(_SCALES)}, not {rule!r}'
      f'{spelling.nearest(str(rule), list(_SCALES))}'
    )
  if rule != 'none':
    if reference < 1:
      raise ValueError(
        f'optimizer.scale_with_batch = {rule!r} needs '
        'optimizer.reference_batch_tokens, the batch that learning_rate is for'
      )
    section['learning_rate'] *= _SCALES[rule](data['batch_tokens'] / reference)
  return section


def resolve_model(config: Any) -> model_config.ModelConfig:
  """Returns the model a config names: its preset with its overrides."""
  section = to_dict(config)['model']
  changes = {k: v for k, v in section['overrides'].items() if v is not None}
  scaling = changes.pop('rope_scaling', None) or {}
  if scaling := {k: v for k, v in scaling.items() if v is not None}:
    changes['rope_scaling'] = scaling
  if section['preset'] == 'init_from':
    model = _model_of(to_dict(config)['init_from'], changes)
  else:
    model = model_config.get_preset(section['preset'], **changes)
  adapter = dict(to_dict(config)['lora'])
  if not adapter['rank']:
    return model
  if not to_dict(config)['init_from']:
    raise ValueError(
      'lora.rank adapts a model that is there: set init_from to its checkpoint'
    )
  if to_dict(config)['mesh']['stage'] > 1:
    raise ValueError('lora.rank and mesh.stage do not go together')
  return model.replace(lora=lora.LoraConfig(**adapter))


def _model_of(source: str, changes: dict[str, Any]) -> model_config.ModelConfig:
  """Returns the model of a checkpoint, with changes."""
  from yi_jax.training import weights  # readers of files, not for every step

  if not source:
    raise ValueError("model.preset = 'init_from' needs init_from")
  found = weights.describe(paths.in_repository(source))['model']
  return model_config.ModelConfig.from_dict(found).replace(lora=None, **changes)


def profile_range(text: str) -> tuple[int, int] | None:
  """Returns first and last step of train.profile, or None for ''."""
  if not text:
    return None
  match = re.fullmatch(r'(\d+)-(\d+)', text)
  if not match or not 1 <= int(match[1]) <= int(match[2]):
    raise ValueError(f"train.profile is 'first-last' in steps, not {text!r}")
  return int(match[1]), int(match[2])


def to_dict(config: Any) -> dict[str, Any]:
  """Returns a config as nested plain dicts."""
  return config if isinstance(config, dict) else config.to_dict()


def _check_keys(
  config: dict[str, Any], known: dict[str, Any], path: str = ''
) -> None:
  """Raises ValueError for a key too many or too few."""
  for key in config:
    if key not in known:
      hint = spelling.nearest(f'{path}{key}', [f'{path}{k}' for k in known])
      raise ValueError(f'no config key {path}{key}{hint}')
  for key, value in known.items():
    if key not in config:
      raise ValueError(f'config key {path}{key} is missing')
    # These may hold any subset; others check their names.
    free = ('overrides', 'rates', 'samples')
    if isinstance(value, dict) and key not in free:
      _check_keys(config[key], value, f'{path}{key}.')
