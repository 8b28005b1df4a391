"""Every setting: its default, its unit and where the number comes from.

A recipe in configs/ is a function `get_config()` that starts from `default()`,
a `ConfigDict` with every field below, and states what differs. Flags override
single fields (`--config.mask.ratio=0.75`). `typed()` turns the result into the
frozen dataclasses that all code reads; a field that does not exist is an error
with a suggestion. Interchangeable parts are chosen by `name`: registry.py.
"""

import dataclasses
import typing

import ml_collections

from audio_mae_jax import registry


@dataclasses.dataclass(frozen=True)
class Frontend:
  """Waveform to normalised log-mel spectrogram, by Kaldi's convention."""
  sample_rate_hz: int = 16000  # paper, appendix B
  window_ms: float = 25.0  # paper, appendix B
  hop_ms: float = 10.0  # paper, appendix B
  num_mel_bins: int = 128  # F; paper, appendix B
  low_hz: float = 20.0  # lower edge of the first filter; Kaldi's default
  high_hz: float = 0.0  # upper edge of the last; <= 0 counts from Nyquist
  window: str = 'hann'  # hann (released code), hamming, povey, rectangular
  preemphasis: float = 0.97  # 0 switches it off; Kaldi's default
  remove_dc_offset: bool = True  # subtract each frame's mean; Kaldi's default
  floor: float = 1.1920928955078125e-07  # under the logarithm: float32 epsilon
  transform: str = 'auto'  # for speed: a key of frontend.TRANSFORMS
  num_frames: int = 1024  # T: frames are padded with zeros or cut to this many
  mean: float = -4.2677393  # of log-mel over AudioSet; paper, table 3
  std: float = 4.5689974  # idem; features are (x - mean) / (2 std)


@dataclasses.dataclass(frozen=True)
class Augment:
  """Augmentation in training, in the step (paper, section 4.3 and table 3)."""
  roll: bool = True  # cyclic shift by a uniform number of samples
  gain_concentration: float = 10.0  # gain = Beta(c, c) + 0.5; 0: no gain
  mixup: float = 0.0  # probability that a clip is mixed with another
  mixup_concentration: float = 10.0  # its own share is Beta(c, c); as released
  time_mask: int = 0  # SpecAugment: one stretch of up to so many frames
  freq_mask: int = 0  # SpecAugment: one band of up to so many mel bins
  noise: float = 0.0  # uniform, on features, amplitude up to this; released 0.1
  noise_shift: int = 0  # and a cyclic shift by up to so many frames; idem 10


@dataclasses.dataclass(frozen=True)
class Patch:
  """How the spectrogram is cut; all pairs are (time, frequency)."""
  size: tuple[int, int] = (16, 16)  # frames, mel bins; paper, section 4.2
  stride: tuple[int, int] = (0, 0)  # 0: equal to size; (10, 10) overlaps
  # Codes of positions are a fact of the weights: `init_from` brings its own.
  positions: str = 'time_freq'  # a key of patches.POSITIONS
  positions_grid: tuple[int, int] = (0, 0)  # they were made for; 0: the present
  positions_stride: tuple[int, int] = (0, 0)  # idem
  train_positions: bool = False  # of a 'table'; released flag pos_trainable


@dataclasses.dataclass(frozen=True)
class Mask:
  """What the encoder does not see. Only the fields of strategy `name` apply.

  In task classify it applies to training alone, and may be empty: all is seen.
  """
  name: str = 'unstructured'  # a key of masking.STRATEGIES
  ratio: float = 0.8  # share of patches removed; paper, figure 4
  time_ratio: float = 0.7  # share of time steps removed (time, time_freq)
  freq_ratio: float = 0.3  # share of mel bands removed (freq, time_freq)
  block: tuple[int, int] = (5, 5)  # patches per block (block, inverse_block)


@dataclasses.dataclass(frozen=True)
class Encoder:
  """Vision transformer. A zero takes the variant's value."""
  variant: str = 'B'  # a key of models.encoder.VARIANTS
  width: int = 0  # D
  depth: int = 0  # blocks
  heads: int = 0  # H
  mlp_ratio: float = 4.0
  drop_path: float = 0.0  # of the last block, rising from 0; 0.1 to fine-tune


@dataclasses.dataclass(frozen=True)
class Decoder:
  """What turns visible tokens into patches. Only `name`'s own fields apply."""
  name: str = 'local'  # a key of models.decoder.DECODERS
  width: int = 512  # paper, table 1e
  depth: int = 16  # blocks: local 16, global 8, hybrid 8 local; paper, table 1c
  global_depth: int = 4  # global blocks on top (hybrid); paper, table 1c
  heads: int = 16
  mlp_ratio: float = 4.0
  window: tuple[int, int] = (4, 4)  # patches per attention window
  shift: tuple[int, int] = (2, 0)  # of every second block; paper: (2, 2)
  bias_dropout: float = 0.1  # in the relative-position network, as released


@dataclasses.dataclass(frozen=True)
class Classifier:
  """What turns encoded tokens into logits (task classify)."""
  num_classes: int = -1  # C; -1: as many as the data; 0: no head, embeddings
  pool: str = 'mean'  # over patches, then a norm; or 'class_token'; as released


@dataclasses.dataclass(frozen=True)
class Model:
  encoder: Encoder = Encoder()
  decoder: Decoder = Decoder()  # task pretrain
  classifier: Classifier = Classifier()  # task classify
  dtype: str = 'float32'  # of activations and products: float32 or bfloat16
  remat: str = 'none'  # recompute in the backward pass: none, dots, full
  scan_layers: bool = False  # one compiled block for all layers of a stack
  attention: str = 'auto'  # for speed: a key of models.attention.CHOICES


@dataclasses.dataclass(frozen=True)
class Objective:
  """Weighted sum of the two losses of the paper's table 5."""
  reconstruction: float = 1.0  # weight of the mean squared error
  contrastive: float = 0.0  # weight of InfoNCE; the paper's best sum has 0.2
  normalize_patches: bool = True  # targets to zero mean, unit variance each
  temperature: float = 1.0  # of InfoNCE; the paper's formula has none


@dataclasses.dataclass(frozen=True)
class Labels:
  """What labels mean, and what is minimised (task classify; paper, table 3)."""
  multilabel: bool = True  # a clip may have several labels; or it has just one
  loss: str = 'bce'  # a key of losses.CLASSIFICATION: bce, ce
  smoothing: float = 0.0  # share of a label that all classes divide
  metric: str = ''  # the one that is told first; empty: mAP, or accuracy


@dataclasses.dataclass(frozen=True)
class Source:
  """Where clips come from. Only the fields that source `name` takes apply."""
  name: str = ''  # a key of data.sources.SOURCES; empty: no such data
  path: str = ''  # folder or manifest; relative paths start at data.root
  split: str = ''  # of a manifest, records or TFDS, to use; empty: all
  folds: str = ''  # rows of these folds: '1,2', or all but these: '!1'
  classes: tuple[str, ...] = ()  # only clips of these; empty: all
  labels_csv: str = ''  # class_labels_indices.csv of an AST-style JSON
  dataset: str = ''  # TFDS builder, e.g. 'speech_commands'
  segment_s: float = 0.0  # cut long recordings into clips of this; 0: one clip
  num_clips: int = 1024  # synthetic


@dataclasses.dataclass(frozen=True)
class Data:
  root: str = ''  # folder that relative paths start at; or $AUDIO_MAE_DATA
  train: Source = Source()
  valid: Source = Source()
  test: Source = Source()  # for the end: looked at once, and by mode=evaluate
  sampling: str = 'shuffle'  # or balanced, by how rare a clip's labels are
  epoch_clips: int = 0  # drawn for one epoch (balanced); 0: as many as exist
  replacement: bool = False  # a clip may come twice in an epoch (balanced)
  clip_s: float = 10.0  # seconds of waveform per clip
  crop: str = 'cyclic'  # random, cyclic (wraps, fills short clips), start
  resample: str = 'soxr_hq'  # to sample_rate_hz; 'error' refuses other rates
  channels: str = 'mean'  # of all; or 'first', as the released code
  on_bad: str = 'skip'  # unreadable, empty, truncated, NaN audio: skip or stop
  max_bad_fraction: float = 0.02  # of the files; above it the run stops
  num_threads: int = 0  # decoding; 0: one per core, at most 16
  cache_gb: float = 0.0  # of decoded clips kept in memory, for small sets
  prefetch_batches: int = 2  # ready on the device ahead of the step


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """AdamW with warm-up and half-cosine decay (paper, table 3)."""
  base_lr: float = 2e-4  # lr = base_lr * batch_size / 256
  min_lr: float = 1e-6
  warmup_epochs: float = 3.0
  weight_decay: float = 1e-4
  decay_excluded: tuple[str, ...] = (
      r'(.*/)?bias', r'(.*/)?scale', r'(.*/)?tau', r'(.*/)?positions')
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  clip_norm: float = 0.0  # global gradient norm; 0: no clipping
  accumulate: int = 1  # micro-batches per step
  ema_decay: float = 0.0  # of an averaged copy of the weights; 0: no copy
  layer_decay: float = 1.0  # rate of a block over the next one's; released .75


@dataclasses.dataclass(frozen=True)
class Train:
  batch_size: int = 512  # clips per step over all devices
  epochs: float = 32.0
  steps: int = 0  # total; 0: epochs * steps per epoch
  seed: int = 0  # of weights, masks, augmentation and data order


@dataclasses.dataclass(frozen=True)
class Probe:
  """How much a frozen encoder knows: small classifiers on its features."""
  train: Source = Source()  # labelled clips; without them there is no probe
  test: Source = Source()
  kinds: tuple[str, ...] = ('linear', 'knn', 'attentive', 'gated')
  online: tuple[str, ...] = ()  # of the kinds: at evaluations in pre-training
  neighbours: int = 10  # knn
  epochs: int = 50  # attentive, gated
  learning_rate: float = 1e-2  # idem; AdamW, half a cosine
  weight_decay: float = 1e-2  # idem
  batch_size: int = 64  # idem
  untrained: bool = True  # and the same with random weights, to compare


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices by axis; -1 takes what is left."""
  data: int = -1  # each holds a copy of the parameters
  fsdp: int = 1  # parameters and optimizer state are split over these


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  every_steps: int = 0  # 0: at the end of each epoch; -1: never
  keep: int = 3  # newest ones kept
  keep_every_steps: int = 0  # and each multiple of this for good; 0: none


@dataclasses.dataclass(frozen=True)
class Log:
  every_steps: int = 50
  eval_every_steps: int = 0  # 0: at each epoch's end; -1: classify's last
  picture_every_steps: int = 0  # 0: at the end of each epoch; -1: never
  progress: bool = True  # bar on the terminal
  tensorboard: bool = True
  wandb_project: str = ''  # Weights & Biases, when named
  profile_start: int = -1  # first step of the profiler's window; -1: none
  profile_steps: int = 5
  peak_tflops: float = 0.0  # of one device; 0: from the table in flops.py


@dataclasses.dataclass(frozen=True)
class Config:
  name: str = ''  # of the run; empty: the config file's
  task: str = 'pretrain'  # a key of tasks.TASKS
  mode: str = 'train'  # or evaluate, probe: a key of modes.MODES
  folds: tuple[str, ...] = ()  # cross-validation: a run for each, then the mean
  workdir: str = ''  # empty: runs/NAME
  init_from: str = ''  # weights, run or checkpoint to start from; empty: none
  frontend: Frontend = Frontend()
  augment: Augment = Augment()
  patch: Patch = Patch()
  mask: Mask = Mask()
  model: Model = Model()
  objective: Objective = Objective()  # task pretrain
  labels: Labels = Labels()  # task classify
  data: Data = Data()
  optimizer: Optimizer = Optimizer()
  train: Train = Train()
  probe: Probe = Probe()
  mesh: Mesh = Mesh()
  checkpoint: Checkpoint = Checkpoint()
  log: Log = Log()


def default(task: str = 'pretrain') -> ml_collections.ConfigDict:
  """A `ConfigDict` of every field at its default, for recipes to change.

  For 'classify' that is: all patches are seen, and the class token does not
  decay (util/lr_decay.py of the released code).
  """
  config = ml_collections.ConfigDict(dataclasses.asdict(Config(task=task)))
  if task == 'classify':
    config.mask.name = ''
    config.optimizer.decay_excluded += (r'(.*/)?cls_token',)
  return config


def typed(config: ml_collections.ConfigDict | dict) -> Config:
  """The frozen form of `config`; an unknown field or type is a ValueError."""
  if isinstance(config, ml_collections.ConfigDict):
    config = config.copy_and_resolve_references().to_dict()
  return _build(Config, config, 'config')


def _build(cls, values, where):
  if not isinstance(values, dict):
    raise ValueError(f'{where} takes a group of settings, not {values!r}.')
  fields = {f.name: f for f in dataclasses.fields(cls)}
  for name in values:
    if name not in fields:
      raise ValueError(registry.unknown(
          f'{where}.{name}', name, 'a setting', fields))
  hints = typing.get_type_hints(cls)
  return cls(**{
      name: _convert(value, hints[name], f'{where}.{name}')
      for name, value in values.items()})


def _convert(value, hint, where):
  """`value` as `hint`; a widening (1 -> 1.0, list -> tuple) is not an error."""
  if dataclasses.is_dataclass(hint):
    return _build(hint, value, where)
  if typing.get_origin(hint) is tuple:
    inner = typing.get_args(hint)
    if not isinstance(value, (list, tuple)):
      raise ValueError(f'{where} takes a tuple, got {value!r}.')
    if inner[-1] is Ellipsis:
      inner = (inner[0],) * len(value)
    if len(value) != len(inner):
      raise ValueError(f'{where} takes {len(inner)} values, got {value!r}.')
    return tuple(_convert(v, h, where) for v, h in zip(value, inner))
  if hint is float and type(value) is int:
    return float(value)
  if type(value) is not hint:
    raise ValueError(
        f'{where} takes {hint.__name__}, got {value!r} '
        f'({type(value).__name__}).')
  return value


def differences(
    old: dict, new: dict, prefix: str = ''
) -> list[tuple[str, object, object]]:
  """`(field, old, new)` for every leaf in which two nested dicts differ."""
  found = []
  for name in sorted(set(old) | set(new)):
    a, b = old.get(name), new.get(name)
    if isinstance(a, dict) and isinstance(b, dict):
      found += differences(a, b, f'{prefix}{name}.')
    elif (list(a) if isinstance(a, tuple) else a) != (
        list(b) if isinstance(b, tuple) else b):
      found.append((prefix + name, a, b))
  return found
