"""Tensors by name, from and to files; nothing in a file is ever executed."""

import json
import pathlib
import struct

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from audio_mae_jax import weights
from audio_mae_jax.convert import torch_file

FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16)
_SAFE_FLOATS = ('F32', 'F16', 'BF16')
_INSIDE = ('model', 'state_dict', 'model_state_dict', 'module')
NOTES = 'audio_mae_jax'  # where exported files say what their model is
_PREFIXES = ('module.', '_orig_mod.', 'model.')  # by wrappers of torch


def read(path) -> tuple[dict[str, np.ndarray], dict]:
  """Tensors of a file or of a Hugging Face folder, and settings beside them.

  Settings are a Hugging Face config.json, and under `NOTES` those that this
  project's exports carry.

  Files are .safetensors or what `torch.save` wrote (.pth, .pt, .bin), told
  apart by what is in them. A state dict may lie under 'model' or the like;
  wrappers' prefixes ('module.') are taken off.

  Raises:
    ValueError: there is no such file, it is damaged, or holds no tensors that
      a model could have.
  """
  path = pathlib.Path(path)
  settings = {}
  if path.is_dir():
    path, settings = _in_folder(path)
  if not path.exists():
    raise ValueError(f'There is no file {path}.')
  if torch_file.is_torch_file(path):
    saved = torch_file.read(path)
    tensors = _state_dict(saved, path)
    notes = saved.get(NOTES)
  elif _is_safetensors(path):
    tensors, notes = _read_safetensors(path)
  else:
    raise ValueError(
        f'{path} is neither a .safetensors file nor one that torch.save wrote, '
        'or its beginning is damaged. Fetch it again, and see that it is not a '
        'web page or a pointer to a large file.')
  if isinstance(notes, str):
    settings = settings | {NOTES: _json(notes, f'The note {NOTES!r} in {path}')}
  while prefix := next((prefix for prefix in _PREFIXES if all(
      name.startswith(prefix) for name in tensors)), None):
    tensors = {name[len(prefix):]: x for name, x in tensors.items()}
  _check(tensors, path)
  return tensors, settings


def _read_safetensors(path):
  """The tensors of a .safetensors file, and this project's note in it."""
  try:
    with safetensors.safe_open(path, 'np') as file:
      notes = (file.metadata() or {}).get(NOTES)
      _check_types({name: file.get_slice(name).get_dtype()
                    for name in file.keys()}, _SAFE_FLOATS, path)
    return safetensors.numpy.load_file(path), notes
  except safetensors.SafetensorError as error:
    raise ValueError(
        f'{path} is a damaged .safetensors file ({error}): fetch it again.'
    ) from error


def _json(text, what) -> dict:
  try:
    values = json.loads(text)
  except ValueError as error:
    raise ValueError(f'{what} is no JSON: {error}.') from error
  if not isinstance(values, dict):
    raise ValueError(f'{what} should be a dict of settings, not {values!r}.')
  return values


def _in_folder(folder):
  """The file of tensors in a Hugging Face folder, and its config.json."""
  names = ('model.safetensors', 'pytorch_model.bin')
  for name in names:
    if (folder / name).exists():
      break
  else:
    sharded = any(folder.glob('*.index.json'))
    raise ValueError(
        f'{folder} holds neither {" nor ".join(names)}' + (
            ', but several parts of it: save it again in one, with '
            'save_pretrained(..., max_shard_size="100GB").' if sharded else
            '; give the file itself.'))
  if not (folder / 'config.json').exists():
    return folder / name, {}
  settings = _json((folder / 'config.json').read_text(),
                   folder / 'config.json')
  if settings.get('kind') == weights.KIND:
    raise ValueError(
        f'{folder} holds weights of this project already; there is nothing to '
        'import.')
  return folder / name, settings


def _is_safetensors(path) -> bool:
  """By the length of the header, which comes first, and its first letter."""
  with open(path, 'rb') as file:
    head = file.read(9)
  return (len(head) == 9 and head[8:] == b'{'
          and struct.unpack('<Q', head[:8])[0] < 100_000_000)


def _state_dict(saved, path):
  """The dict of tensors in what was saved."""
  for name in _INSIDE:
    if isinstance(saved, dict) and isinstance(saved.get(name), dict):
      saved = saved[name]
      break
  tensors = {}
  if isinstance(saved, dict):
    tensors = {name: x for name, x in saved.items()
               if isinstance(name, str) and isinstance(x, np.ndarray)}
  if not tensors:
    what = (f'a dict of {", ".join(map(str, list(saved)[:8]))}'
            if isinstance(saved, dict) else f'a {type(saved).__name__}')
    raise ValueError(
        f'{path} holds no tensors by name, but {what}. It should hold a state '
        f'dict, by itself or under {", ".join(map(repr, _INSIDE))}.')
  return tensors


def _check(tensors, path):
  """Raises ValueError for numbers that parameters cannot be."""
  _check_types({name: x.dtype for name, x in tensors.items()}, FLOATS, path)
  empty = [name for name, x in tensors.items() if not x.ndim or not x.size]
  if empty:
    raise ValueError(
        f'{path}: {len(empty)} tensors have no axis or no numbers, e.g. '
        f'{empty[0]} {list(tensors[empty[0]].shape)}: these are no weights.')
  bad = [name for name, x in tensors.items()
         if not np.isfinite(x.astype(np.float32)).all()]
  if bad:
    raise ValueError(
        f'{path}: {len(bad)} tensors hold NaN or infinity, e.g. {bad[0]}: the '
        'training went wrong, or the file is damaged.')


def _check_types(types, allowed, path):
  other = [f'{name} ({kind})' for name, kind in types.items()
           if kind not in allowed]
  if other:
    raise ValueError(
        f'{path}: {len(other)} tensors are of another type than float32, '
        f'float16 or bfloat16: {", ".join(other[:8])}. Float64 would be '
        'rounded, and others are no weights: convert the file first.')


def write(path, tensors: dict[str, np.ndarray], notes: dict):
  """Writes .safetensors, or with torch .pth, whole or not at all.

  `notes` say what the model is; `read` gives them back.

  Raises:
    ValueError: the ending is another one, `path` exists, or torch is needed
      and not installed.
  """
  suffix = pathlib.PurePath(path).suffix
  writers = {'.safetensors': _write_safetensors, '.pth': _write_torch}
  if suffix not in writers:
    raise ValueError(
        f'{path} must end in {" or ".join(writers)}; the ending says what is '
        'written.')
  with weights.writing(path) as place:
    writers[suffix](place, tensors, json.dumps(notes))


def _write_safetensors(place, tensors, notes):
  # Hugging Face's loaders ask for the format.
  weights.write_tensors(place, tensors, {'format': 'pt', NOTES: notes})


def _write_torch(place, tensors, notes):
  try:
    import torch
  except ImportError as error:
    raise ValueError(
        "Writing a .pth file needs torch (pip install 'audio_mae_jax[torch]'); "
        'a .safetensors file does not, and torch users read it with '
        'safetensors.torch.load_file.') from error

  def tensor(x):
    if x.dtype == ml_dtypes.bfloat16:  # torch knows no such NumPy type
      return torch.from_numpy(
          x.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(x, order='C'))

  torch.save({'model': {name: tensor(x) for name, x in tensors.items()},
              NOTES: notes}, place)
