"""Attention, all of it: for each kind one reference, and what is faster.

`full` is of all tokens to all tokens, `windows` is cosine attention inside of
windows. Each kind has a table of implementations that give the same up to
rounding, values and gradients (tests/test_attention.py); the first of a table
is its reference. `config.model.attention` names a pair of them, or 'auto': what
is fastest on the platform, as far as that was measured (docs/performance.md).

All take queries, keys and values as the one projection gives them, [..., 3 D]:
a kernel reads them where they lie. They are all that is kept for the way back,
which computes scores and weights again: little work, and many bytes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from audio_mae_jax import devices


def full(qkv, heads: int, name: str = 'auto', lengths=None):
  """Softmax attention of all tokens to all, [B, L, 3 D] -> [B, L, D].

  With `lengths` int32 [B], only to the first so many of a clip's; what the
  tokens behind them get means nothing.
  """
  if name == 'auto' and (
      cudnn_refuses(qkv, heads) if devices.platform() == 'gpu' else
      qkv.shape[1] < _LEAST_BY_HEAD):
    name = 'xla'
  arrays = (qkv,) if lengths is None else (qkv, lengths)
  return _run(
      FULL, name, lambda run, qkv, *lengths: run(qkv, heads, *lengths), *arrays)


def windows(qkv, heads: int, bias, tau, mask=None, name: str = 'auto'):
  """Cosine attention inside each window, [B, W, L, 3 D] -> [B, W, L, D].

  Args:
    qkv: queries, keys and values of W windows of L patches.
    heads: H, that D is divided into.
    bias: float32 [H, L, L], added to each pair's cosine over its temperature.
    tau: float32 [H], temperatures; below 0.01 they count as that.
    mask: float32 [W, L, L] to add as well, an array of NumPy, or None.
    name: a key of CHOICES.
  """
  return _run(
      WINDOWS, name,
      lambda run, qkv, bias, tau: run(
          qkv, heads, bias, jnp.maximum(tau, 0.01), mask), qkv, bias, tau)


def _run(table, name, call, *arrays):
  """`call(implementation, *arrays)` with the one that `name` stands for."""
  kind, known = (FULL, WINDOWS).index(table), devices.platform()

  def of(name):
    choice = CHOICES[name][kind]
    run = functools.partial(call, table[choice])
    return run if choice in OF_GPUS else jax.checkpoint(run)

  if name != 'auto':
    if name in OF_GPUS and known not in (None, 'gpu'):
      raise ValueError(
          f'model.attention={name!r} needs a GPU, and this program is for '
          f'devices of platform {known!r}. Set model.attention to one of '
          f'{", ".join(n for n in CHOICES if n not in OF_GPUS)}.')
    return of(name)(*arrays)
  if known:
    best = AUTO.get(known, 'xla')
    if best in OF_GPUS and not devices.run_kernels():
      best = 'xla'
    return of(best)(*arrays)
  choices = {where: of(name) for where, name in AUTO.items()
             if CHOICES[name][kind] != CHOICES['xla'][kind]
             and name not in OF_GPUS}
  if not choices:
    return of('xla')(*arrays)
  # A program for any platform, as of an export, holds what each would take.
  return jax.lax.platform_dependent(*arrays, **choices, default=of('xla'))


def split_heads(qkv, heads: int):
  """[..., L, 3 D] -> three arrays [..., L, H, D / H]: queries, keys, values."""
  # Cut before heads are told apart: a TPU lays out each third on its own, and
  # would copy all three with 32 of 128 lanes in use.
  return [x.reshape(*x.shape[:-1], heads, -1)
          for x in jnp.split(qkv, 3, axis=-1)]


def _full_xla(qkv, heads, lengths=None):
  q, k, v = split_heads(qkv, heads)
  logits = jnp.einsum(
      'bqhd,bkhd->bhqk', q, k, preferred_element_type=jnp.float32)
  if lengths is not None:
    inside = jnp.arange(k.shape[1]) < lengths[:, None]
    logits = jnp.where(inside[:, None, None], logits, -jnp.inf)
  weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5)
  out = jnp.einsum('bhqk,bkhd->bqhd', weights.astype(v.dtype), v)
  return out.reshape(*out.shape[:2], -1)


def _full_by_head(qkv, heads, lengths=None):
  """One head of one clip after the other: their scores, of which all together
  are several times what goes in and comes out, stay in a processor's cache."""

  def one(head):
    q, k, v, length = head  # [L, D / H] and a number
    logits = jnp.matmul(q, k.T, preferred_element_type=jnp.float32)
    if length is not None:
      logits = jnp.where(jnp.arange(len(k)) < length, logits, -jnp.inf)
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5)
    return weights.astype(v.dtype) @ v

  def of_clips(qkv, lengths):
    b, tokens, _ = qkv.shape
    arrays = [x.swapaxes(1, 2).reshape(b * heads, tokens, -1)
              for x in split_heads(qkv, heads)]
    if lengths is not None:
      lengths = jnp.repeat(lengths, heads)
    # On the way back the scores of a head are made just before they are used.
    out = jax.lax.map(jax.checkpoint(one), (*arrays, lengths))
    return out.reshape(b, heads, tokens, -1).swapaxes(1, 2).reshape(
        b, tokens, -1)

  # The partitioner would have each device go through the heads of all clips.
  return devices.split(of_clips, (qkv, lengths), ())


def _full_cudnn(qkv, heads, lengths=None):
  _check_cudnn(qkv, heads)
  # Each device its own clips: the partitioner would hand each the lengths of
  # all.
  return devices.split(
      lambda qkv, lengths: dot_product_full(qkv, heads, 'cudnn', lengths),
      (qkv, lengths), ())


def dot_product_full(qkv, heads, implementation: str, lengths=None):
  """`full` as `jax.nn.dot_product_attention`, by that `implementation`."""
  b, tokens, _ = qkv.shape
  behind = None
  if lengths is not None:
    behind = jnp.arange(tokens) >= lengths[:, None]
  if tokens % 2:
    # jax 0.10 refuses the gradient of odd lengths, with and without a bias:
    # a token is added that no other attends to.
    qkv = jnp.pad(qkv, [(0, 0), (0, 1), (0, 0)])
    lengths = jnp.full(b, tokens, jnp.int32) if lengths is None else lengths
  out = jax.nn.dot_product_attention(
      *split_heads(qkv, heads), implementation=implementation,
      query_seq_lengths=lengths, key_value_seq_lengths=lengths)
  out = out.reshape(*out.shape[:2], -1)[:, :tokens]
  # Nothing is promised of rows behind a length: what is no number there would
  # be one of the values of the next layer, with a weight of 0.
  return out if behind is None else jnp.where(behind[..., None], 0, out)


def cudnn_refuses(qkv, heads) -> str | None:
  """What keeps cuDNN's fused attention from a projection, and the remedy."""
  channels = qkv.shape[-1] // (3 * heads)
  if qkv.dtype not in (jnp.bfloat16, jnp.float16):
    return (
        f'model.attention=cudnn computes in bfloat16, and model.dtype is '
        f'{qkv.dtype}. Set model.dtype=bfloat16, or model.attention=auto.')
  if channels % 8 or channels > 128:
    return (
        'model.attention=cudnn takes heads of at most 128 channels and a '
        f'multiple of 8, not {channels}. Set another number of heads, or '
        'model.attention=auto.')
  return None


def _check_cudnn(qkv, heads):
  if why := cudnn_refuses(qkv, heads):
    raise ValueError(why)


def windows_at_once(windows: int, patches: int) -> int:
  """How many windows fill a tile of 128 tokens; a divisor of `windows`.

  A TPU's vectors have 128 lanes, of which the 16 keys of one window would use
  16; a program of cuDNN works on 64 or 128 queries and as many keys.
  """
  return max(n for n in range(1, windows + 1)
             if windows % n == 0 and (n == 1 or n * patches <= 128))


def block_mask(mask, windows: int, patches: int, together: int, apart=-np.inf):
  """float32 [W / G, G L, G L]: `mask` [W, L, L] (or zeros) on the diagonal of
  blocks of G = `together` windows, `apart` between different windows."""
  if together == 1:
    return mask
  blocks, member = windows // together, np.arange(together)
  if mask is None:
    mask = np.zeros((windows, patches, patches), np.float32)
  out = np.full((blocks, together, patches, together, patches), apart,
                np.float32)
  out[:, member, :, member] = mask.reshape(
      blocks, together, patches, patches).swapaxes(0, 1)
  return out.reshape(blocks, together * patches, together * patches)


def _windows_xla(qkv, heads, bias, tau, mask, *, together=1):
  """In batched products of matrices. With `together`, so many windows share
  one, with what is between different windows masked."""
  b, w, patches, _ = qkv.shape
  mask = block_mask(mask, w, patches, together)
  bias = jnp.tile(bias, (1, together, together))
  # [B, blocks, tokens, H, D / H]
  q, k, v = (x.reshape(b, w // together, together * patches, heads, -1)
             for x in split_heads(qkv, heads))
  # The floor keeps the gradient at zero finite, and is far below the clamp.
  length = lambda x: jnp.sqrt(jnp.maximum(
      jnp.square(x.astype(jnp.float32)).sum(-1), 1e-30)).swapaxes(-1, -2)
  # [B, blocks, H, q, k]; as released, the product of lengths is clamped.
  lengths = length(q)[..., :, None] * length(k)[..., None, :]
  logits = jnp.einsum(
      'bwqhd,bwkhd->bwhqk', q, k, preferred_element_type=jnp.float32)
  logits /= jnp.maximum(lengths, 1e-6)
  logits /= tau[:, None, None]
  logits += bias
  if mask is not None:
    logits += mask[:, None]
  weights = jax.nn.softmax(logits).astype(v.dtype)
  out = jnp.einsum('bwhqk,bwkhd->bwqhd', weights, v)
  return out.reshape(b, w, patches, -1)


def _windows_blocks(qkv, heads, bias, tau, mask):
  together = windows_at_once(*qkv.shape[1:3])
  return _windows_xla(qkv, heads, bias, tau, mask, together=together)


def _windows_cudnn(qkv, heads, bias, tau, mask):
  _check_cudnn(qkv, heads)
  w, patches = qkv.shape[1:3]
  together = windows_at_once(w, patches)
  if together * patches % 2:
    raise ValueError(
        'model.attention=cudnn takes an even number of patches, and '
        f'{together} windows of {patches} are {together * patches}. Set '
        'another model.decoder.window, or model.attention=auto.')
  return dot_product_windows(qkv, heads, bias, tau, mask, 'cudnn')


def dot_product_windows(
    qkv, heads, bias, tau, mask, implementation: str, together: int = 0):
  """`windows` as `jax.nn.dot_product_attention`, by that `implementation`.

  Windows are grouped under a block mask, so many `together`, by default as fill
  a tile; and blocks count as heads: so each has its bias, and the gradient of
  that is one that cuDNN gives. Queries and keys
  are normalised each on its own, with a floor of 1e-6; the reference's floor is
  under the product of their lengths. So the two differ where that product, or
  one of the lengths, is below 1e-6.
  """
  b, w, patches, _ = qkv.shape
  together = together or windows_at_once(w, patches)
  blocks, tokens = w // together, together * patches
  # cuDNN is not asked for differences of two infinities.
  mask = block_mask(mask, w, patches, together, apart=-1e9)
  bias = jnp.tile(bias, (1, together, together))
  bias = bias if mask is None else bias + mask[:, None]
  bias = jnp.broadcast_to(bias, (blocks, heads, tokens, tokens))
  q, k, v = split_heads(qkv, heads)
  unit = lambda x: x * jax.lax.rsqrt(jnp.maximum(
      jnp.square(x).sum(-1, keepdims=True), 1e-12))
  q = unit(q.astype(jnp.float32)) / tau[:, None]
  k = unit(k.astype(jnp.float32))
  fold = lambda x: x.astype(qkv.dtype).reshape(
      b, blocks, tokens, heads, -1).swapaxes(1, 2).reshape(
          b, tokens, blocks * heads, -1)
  out = jax.nn.dot_product_attention(
      fold(q), fold(k), fold(v), scale=1.0, implementation=implementation,
      bias=bias.reshape(1, -1, tokens, tokens).astype(qkv.dtype))
  out = out.reshape(b, tokens, blocks, -1).swapaxes(1, 2)
  return out.reshape(b, w, patches, -1)


def _windows_pallas(qkv, heads, bias, tau, mask):
  # Here, as importing Pallas takes longer than most programs have use for it.
  from audio_mae_jax.models import window_kernel
  return window_kernel.attend(qkv, heads, bias, tau, mask)


FULL = {'xla': _full_xla, 'by_head': _full_by_head, 'cudnn': _full_cudnn}
WINDOWS = {'windows': _windows_xla, 'blocks': _windows_blocks,
           'cudnn': _windows_cudnn, 'pallas': _windows_pallas}
# What `config.model.attention` may be: a key of FULL and one of WINDOWS.
CHOICES = {
    'auto': None,
    'xla': ('xla', 'windows'),
    'by_head': ('by_head', 'windows'),
    'blocks': ('xla', 'blocks'),
    'cudnn': ('cudnn', 'cudnn'),
    'pallas': ('xla', 'pallas'),
    'cudnn_pallas': ('cudnn', 'pallas'),
}
# Tokens: of fewer, all scores together are small, and a loop takes longer.
_LEAST_BY_HEAD = 96
OF_CPUS = ('by_head',)  # works elsewhere too, and very slowly
OF_GPUS = ('cudnn', 'pallas', 'cudnn_pallas')
# What 'auto' stands for where that is not 'xla'. It is on GPUs without kernels,
# and for all tokens where cuDNN does not take them, or a CPU has few.
# docs/performance.md has what was measured.
AUTO = {'cpu': 'by_head', 'gpu': 'cudnn_pallas', 'tpu': 'blocks'}
