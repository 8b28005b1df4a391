"""The pictures show what they claim to, pixel by pixel."""

import json

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from audio_mae_jax import config
from audio_mae_jax import pictures

FRONTEND = config.Frontend(num_frames=64, num_mel_bins=32)


def clips(num=1, frames=64):
  """[B, T, F]: a ramp over frequency, so that it has every colour."""
  ramp = np.linspace(-1, 1, 32, dtype=np.float32)
  return np.broadcast_to(ramp, (num, frames, 32)).copy()


def draw(path, x, removed, y, **kwargs):
  return pictures.reconstruction(
      x, removed, y, path, frontend=FRONTEND, **kwargs)


def rows_of(rgb):
  """The panels of the leftmost clip, by its time axis: three row slices."""
  drawn = (rgb.min(-1) < 210).mean(1) > 0.5  # neither white nor text
  edges = np.flatnonzero(np.diff(np.r_[False, drawn, False].astype(int)))
  assert len(edges) == 6, edges
  return [rgb[a:b] for a, b in edges.reshape(3, 2)]


def share(panel, colour, atol=1):
  """Of the panel's area, without the margins beside the axes."""
  inside = panel[:, panel.shape[1] // 4:]
  return (np.abs(inside.astype(int) - colour) <= atol).all(-1).mean()


def assert_same(a, b):
  """Up to a fraction of a row by which panels lie apart; without labels."""
  right = slice(a.shape[1] // 2, None)
  differ = np.abs(a[:, right].astype(int) - b[:, right]).max(-1) > 12
  assert differ.mean() < 0.1, differ.mean()


def test_removed_pixels_are_grey_in_the_middle_row_only(tmp_path):
  removed = np.zeros((1, 64, 32), bool)
  removed[:, :, 16:] = True  # the upper half of the band
  x = clips()
  rgb = draw(tmp_path / 'a.png', x, removed, x)
  original, visible, rebuilt = rows_of(rgb)
  assert share(original, pictures.GREY) == share(rebuilt, pictures.GREY) == 0
  height = len(visible)
  assert share(visible[:height // 2 - 3], pictures.GREY) > 0.9
  assert share(visible[height // 2 + 3:], pictures.GREY) == 0
  assert_same(visible[height // 2 + 3:], original[height // 2 + 3:])


def test_reconstruction_is_pasted_into_removed_patches_only(tmp_path):
  removed = np.zeros((1, 64, 32), bool)
  removed[:, :, 16:] = True
  low = np.full((1, 64, 32), -1, np.float32)
  rgb = draw(tmp_path / 'a.png', clips(), removed, low)
  original, _, rebuilt = rows_of(rgb)
  black = matplotlib.colormaps['magma'](0, bytes=True)[:3]
  half = len(rebuilt) // 2
  assert share(rebuilt[:half - 3], black) > 0.9
  assert_same(rebuilt[half + 3:], original[half + 3:])


def test_frequency_goes_upwards(tmp_path):
  x = clips()
  original, *_ = rows_of(draw(tmp_path / 'a.png', x, np.ones_like(x, bool), x))
  brightness = original[:, original.shape[1] // 2].astype(int).sum(-1)
  assert brightness[5] > 600 and brightness[-5] < 100


def test_prediction_does_not_move_the_colour_scale(tmp_path):
  x, removed = clips(), np.zeros((1, 64, 32), bool)
  removed[:, :16] = True
  a = draw(tmp_path / 'a.png', x, removed, x)
  b = draw(tmp_path / 'b.png', x, removed, x + 100)
  np.testing.assert_array_equal(rows_of(a)[0], rows_of(b)[0])
  assert (rows_of(a)[2] != rows_of(b)[2]).any()


def test_outliers_do_not_dim_the_clip(tmp_path):
  x = clips()
  removed = np.zeros_like(x, bool)
  spiked = x.copy()
  spiked[0, 0, 0] = 1e4
  a = rows_of(draw(tmp_path / 'a.png', x, removed, x))[0]
  b = rows_of(draw(tmp_path / 'b.png', spiked, removed, x))[0]
  right = slice(a.shape[1] // 2, None)
  assert np.abs(a[:, right].astype(int) - b[:, right]).max() <= 4


def test_padding_is_white_and_common_padding_is_cut(tmp_path):
  x = clips(2)
  x[0, 32:] = -FRONTEND.mean / (2 * FRONTEND.std)
  x[1, 48:] = -FRONTEND.mean / (2 * FRONTEND.std)
  removed = np.ones_like(x, bool)
  rgb = draw(tmp_path / 'a.png', x, removed, x)
  whole = draw(tmp_path / 'b.png', clips(2), removed, clips(2))
  grey = (rgb == pictures.GREY).all(-1).sum()
  full = (whole == pictures.GREY).all(-1).sum()
  # Of 48 frames that are drawn the first clip fills 32, the second all.
  assert abs(grey / full - (32 + 48) / 96) < 0.02


@pytest.mark.parametrize('num, columns', [(1, 1), (2, 2), (6, 4)])
def test_file_is_the_returned_picture_of_at_most_four_clips(
    tmp_path, num, columns):
  x = clips(num)
  path = tmp_path / 'new' / 'a.png'
  rgb = draw(path, x, np.zeros_like(x, bool), x, step=1200,
             titles=[f'a $5 $6 {i} ' + 40 * 'x' + '.flac' for i in range(num)])
  assert rgb.dtype == np.uint8 and rgb.flags.c_contiguous
  assert rgb.shape == (750, round((0.7 + 3.1 * columns) * 150), 3)
  read = (matplotlib.image.imread(path)[..., :3] * 255).round()
  np.testing.assert_array_equal(read, rgb)
  assert [p.name for p in path.parent.iterdir()] == ['a.png']


def test_silence_is_drawn_without_a_warning(tmp_path, recwarn):
  x = np.full((1, 64, 32), -1.3, np.float32)
  draw(tmp_path / 'a.png', x, np.zeros_like(x, bool), x)
  assert not recwarn.list


def test_other_mel_bands_get_their_own_ticks(tmp_path):
  x = clips()
  removed = np.zeros_like(x, bool)
  a = draw(tmp_path / 'a.png', x, removed, x)
  narrow = config.Frontend(high_hz=-2000, num_mel_bins=32)
  b = pictures.reconstruction(
      x, removed, x, tmp_path / 'b.png', frontend=narrow)
  assert a.shape == b.shape and (a[:, :100] != b[:, :100]).any()


@pytest.mark.parametrize('shape', [(1, 64, 16), (2, 64, 32), (64, 32)])
def test_shapes_that_differ_are_refused(tmp_path, shape):
  with pytest.raises(ValueError, match=r'of one shape \[B, T, F\], got .*Unp'):
    draw(tmp_path / 'a.png', clips(), np.zeros(shape, bool), clips())


def write_record(path, rows):
  path.write_text(''.join(
      json.dumps({'step': step, 'time': 0.0, **values}) + '\n'
      for step, values in rows))
  return path


def colour_count(rgb, name):
  colour = 255 * np.array(matplotlib.colors.to_rgb(name))
  return int((np.abs(rgb - colour) < 2).all(-1).sum())


TRAIN = [(s, {'train/loss': 1 / s, 'lr': 1e-4, 'epoch': s / 10})
         for s in range(1, 101)]
VALID = [(s, {'valid/loss': 1.1 / s}) for s in (25, 50, 75, 100)]


def test_loss_curve_draws_train_valid_rate_and_epochs(tmp_path):
  record = write_record(tmp_path / 'm.jsonl', TRAIN + VALID)
  rgb = pictures.loss_curve(record, tmp_path / 'loss.png')
  assert rgb.shape == (630, 960, 3)
  assert colour_count(rgb, 'tab:blue') > 500
  assert colour_count(rgb, 'tab:orange') > 100
  bare = write_record(tmp_path / 'bare.jsonl', [
      (s, {'train/loss': v['train/loss']}) for s, v in TRAIN])
  bare = pictures.loss_curve(bare, tmp_path / 'bare.png')
  assert colour_count(bare, 'tab:orange') == 0
  dark = [(x[:20, 200:] < 128).any() for x in (bare, rgb)]
  assert dark == [False, True]  # 'epoch' is written on top


def test_loss_curve_of_a_live_record_with_one_torn_line_and_a_nan(tmp_path):
  record = write_record(tmp_path / 'm.jsonl', TRAIN[:1])
  with open(record, 'a') as file:
    file.write('{"step": 2, "time": 0, "train/loss": "NaN"}\n{"step": 3, "tr')
  rgb = pictures.loss_curve(record, tmp_path / 'loss.png')
  assert rgb.shape == (630, 960, 3)


def test_record_without_a_loss_is_refused(tmp_path):
  record = write_record(tmp_path / 'm.jsonl', VALID)
  with pytest.raises(ValueError, match=r"No train/loss in '.*m\.jsonl', 4"):
    pictures.loss_curve(record, tmp_path / 'loss.png')


def test_smoothed_curve_keeps_a_line_a_line():
  line = np.arange(100.0)
  np.testing.assert_allclose(pictures._smooth(line), line)
