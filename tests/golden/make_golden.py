"""Reduces recorded outputs of the released code to what the tests compare with.

  python tests/golden/make_golden.py FOLDER

FOLDER holds the recordings; README.md here says what they are and which file
follows from which. Needs NumPy alone. Parameters and gradients are stored under
this project's names and in its layout (tests/reference.py), large outputs as
the elements that `goldens.sample` picks.
"""

import pathlib
import re
import shutil
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import goldens  # noqa: E402  (found through the line above)
import reference  # noqa: E402

MAX_BYTES = 1_000_000  # of one file
OUTPUT = 4096  # elements kept of an activation
TABLES = ('pretrain_keys', 'pretrain_global_keys', 'pretrain_overlap_keys',
          'finetune_keys', 'finetune_lr_decay_groups', 'pretrain_decay_groups',
          'pretrain_init_stats')
FILES = ('ckpt_pretrain_tiny.pth', 'ckpt_pretrain_tiny_legacy.pth')
VARIANTS = {  # of the local decoder -> the noise that drew its mask
    'random80': ('noise',), 'random50': ('noise',), 'no_shift': ('noise',),
    'normpix_off': ('noise',),
    'mask2d_t70_f30': ('noise_t', 'noise_f'),
    'mask2d_t60_f50': ('noise_t', 'noise_f'),
    'timeonly_t80': ('noise_t', 'noise_f'),
    'freqonly_f75': ('noise_t', 'noise_f'),
}
MASK_ONLY = ('mask2d_t60_f50', 'timeonly_t80')
GRADIENTS = ('no_shift', 'normpix_off')


def save(name, arrays):
  path = HERE / f'{name}.npz'
  np.savez_compressed(path, **arrays)
  size = path.stat().st_size
  print(f'{path.name}: {size / 1000:.0f} kB, {len(arrays)} arrays')
  assert size < MAX_BYTES, f'{path.name} has {size} bytes, over {MAX_BYTES}.'


def parameters(source, prefix='param/'):
  return {f'param/{name}': array
          for name, array in reference.load(source, prefix).items()}


def samples(source, prefix, to):
  return {f'{to}{name}': goldens.sample(array)
          for name, array in reference.load(source, prefix).items()}


def outputs(source, prefix=''):
  """Mask, latents, prediction and both losses of one forward pass."""
  return {
      'removed': np.packbits(source[f'{prefix}mask'] > 0, axis=1),
      'ids_restore': source[f'{prefix}ids_restore'].astype(np.int16),
      'latent': goldens.sample(source[f'{prefix}latent'], OUTPUT),
      'pred': goldens.sample(source[f'{prefix}pred'], OUTPUT),
      'loss_pix': source[f'{prefix}loss_pix'],
      'loss_normpix': source[f'{prefix}loss_normpix'],
  }


def copied(source, *patterns):
  """The arrays whose whole name matches one of the regular expressions."""
  return {name: source[name] for pattern in patterns for name in source.files
          if re.fullmatch(pattern, name)}


def frontend(folder):
  """Clips of about a second, and log-mel features and stages of some."""
  save('frontend', copied(
      np.load(folder / 'fbank_edge.npz'),
      r'.*/(pcm16|sr|fbank_raw|fbank_raw_float64)',
      '(speech|stereo)_1s/dataset_speechcommands',
      'len560/dataset_speechcommands', 'speech_1s/dataset_audioset',
      'mel_bank_16k', 'window_hanning_400',
      'len560/(windowed_frames|power_spectrum)'))


def augment(folder):
  """Clips as the released dataset augments and mixes them, with its draws."""
  source = np.load(folder / 'augment.npz')
  save('augment', {
      **copied(source, 'roll_mag_.*', 'specaug/.*'),
      **copied(np.load(folder / 'fbank_5s.npz'),
               'speech_5s/(pcm16|fbank_raw|dataset_esc50)'),
      **copied(np.load(folder / 'fbank_edge.npz'), 'stereo_1s/pcm16')})
  save('mixup', {
      **copied(source, 'mixup_.*'),
      **copied(np.load(folder / 'fbank_5s.npz'), 'music_5s/pcm16')})


def local(folder):
  """64 x 8 patches of 4 x 4 pixels, 16 local blocks, eight variants."""
  source = np.load(folder / 'pretrain_swin_tiny_variants.npz')
  every = parameters(source)
  first = {name: array for name, array in every.items()
           if name.startswith('param/decoder/blocks/0')}
  save('local_params_0', first)  # in two halves, to stay below the limit
  save('local_params_1', {name: every[name] for name in every
                          if name not in first})
  arrays = {'spectrograms': source['imgs'][:, 0]}
  for variant, noises in VARIANTS.items():
    found = outputs(source, f'{variant}/')
    if variant in MASK_ONLY:
      found = {name: found[name] for name in ('removed', 'ids_restore')}
    if variant in GRADIENTS:
      found |= samples(source, f'{variant}/grad/', 'grad/')
    found |= {noise: source[f'{variant}/{noise}'] for noise in noises}
    arrays |= {f'{variant}/{name}': array for name, array in found.items()}
  save('local', arrays)


def local_dropout(folder):
  """The same in train mode: dropout in the network of relative positions."""
  source = np.load(folder / 'pretrain_swin_tiny_trainmode.npz')
  stack = lambda name: np.packbits(np.stack(
      [source[f'{name}/block{i}'] for i in range(16)]), axis=-1)
  save('local_dropout', {
      'keep1': stack('keep1'), 'keep2': stack('keep2'),
      'pred': goldens.sample(source['pred'], OUTPUT), 'loss': source['loss'],
      **samples(source, 'grad/', 'grad/')})


def local_released_size(folder):
  """1024 x 128 in patches of 16 x 16; the first clip and two decoder blocks."""
  source = np.load(folder / 'pretrain_swin_small.npz')
  deep = [f'param/decoder/blocks/{i:02d}/' for i in range(2, 16)]
  save('local_16_params', {
      name: array for name, array in parameters(source).items()
      if not name.startswith(tuple(deep))})
  save('local_16', {
      'spectrograms': source['imgs'][:1, 0], 'noise': source['noise'][:1],
      'first_patches': source['target_patchified'][:1],
      'removed': np.packbits(source['mask'][:1] > 0, axis=1),
      'ids_restore': source['ids_restore'][:1].astype(np.int16),
      'latent': goldens.sample(source['latent'][:1], OUTPUT),
      'block_1': source['act/dec_block1'][:1],
      'bias_1': source['rel_pos_bias_block1'],
      'attention_mask_1': source['attn_mask_block1'].astype(np.int8),
      'log_offsets': source['relative_coordinates_log']})


def global_(folder):
  """256 x 128 in patches of 16 x 16, four global blocks; all gradients."""
  source = np.load(folder / 'pretrain_global_small.npz')
  save('global', {
      'spectrograms': source['imgs'][:, 0], 'noise': source['noise'],
      **parameters(source), **outputs(source),
      **samples(source, 'grad/', 'grad/'),
      **samples(source, 'normpix_off/grad/', 'normpix_off/grad/')})


def training(folder):
  """Nine optimizer steps from the parameters in global.npz."""
  source = np.load(folder / 'engine_pretrain_global.npz')
  save('training', {
      'spectrograms': source['imgs'][:, :, 0],
      **{name: source[name] for name in
         ('noises', 'losses', 'lrs', 'grad_norms')},
      **samples(source, 'final/', 'final/')})


def schedules(folder):
  source = np.load(folder / 'lr_schedules.npz')
  arrays = {}
  for run in ('pretrain_as2m', 'finetune_as2m', 'finetune_as20k'):
    arrays[f'{run}/settings'] = source[f'{run}/settings']
    arrays[f'{run}/step'] = source[f'{run}/iter_epoch'][:, 0].astype(np.int32)
    rates = source[f'{run}/lr_group0_group13']
    arrays[f'{run}/lr'] = rates[:, 0]
    if run != 'pretrain_as2m':  # at a layer decay of 0.75, of ViT-B
      arrays[f'{run}/lr_first'], arrays[f'{run}/lr_last'] = rates[:, [2, 1]].T
  save('schedules', arrays)


def positions(folder):
  source = np.load(folder / 'pos_embed.npz')
  save('positions', {
      str(width): goldens.sample(source[name], 4 * OUTPUT)
      for width, name in ((768, 'pos_embed_768'),
                          (512, 'decoder_pos_embed_512'))})


def adapt(folder):
  """Tables of positions as released helpers crop and resize them."""
  source = np.load(folder / 'pos_embed_adapt.npz')
  save('adapt', copied(source, '(?!README).*'))


def finetune(folder):
  """A small classifier: its tensors, as released, what it made of a batch, and
  what three optimizer steps made of it.
  """
  source = np.load(folder / 'finetune_tiny.npz')
  arrays = copied(
      source, 'imgs', 'targets', 'param/.*', 'noise_[tf]',
      'eval/(pooled_fc_norm|logits|bce_loss)',
      'mask_t[0-9]+_f[0-9]+/(logits|bce_loss|ids_keep_[tf])',
      'train_droppath/.*', '(release|strong)/(losses|lr|wd)')
  large = copied(source, '(eval|mask_t20_f20)/grad/.*',
                 '(release|strong)/param_after/.*')
  save('finetune', arrays | {
      name: goldens.sample(array) for name, array in large.items()})


def metrics(folder):
  """Scores and targets, and what the released code's metrics make of them."""
  source = np.load(folder / 'metrics.npz')
  save('metrics', copied(source, '(?!README).*'))


def sample_weights(folder):
  """Labels, and how often the released code samples clips with them."""
  source = np.load(folder / 'sample_weights.npz')
  save('sample_weights', copied(source, '(?!README).*'))


def main():
  if len(sys.argv) != 2:
    sys.exit(__doc__)
  folder = pathlib.Path(sys.argv[1])
  for make in (frontend, augment, local, local_dropout, local_released_size,
               global_, training, schedules, positions, adapt, finetune,
               metrics, sample_weights):
    make(folder)
  for name in TABLES:
    shutil.copyfile(folder / f'{name}.tsv', HERE / f'{name}.tsv')
  for name in FILES:
    shutil.copyfile(folder / name, HERE / name)


if __name__ == '__main__':
  main()
