"""Spectrogram <-> patches, and the position tables."""

import re

import goldens
import numpy as np
import pytest

from audio_mae_jax import config
from audio_mae_jax import patches

# size, stride, (T, F), grid
LAYOUTS = {
    'released': ((16, 16), (0, 0), (1024, 128), (64, 8)),
    'tiny': ((4, 4), (0, 0), (256, 32), (64, 8)),
    'tall': ((8, 4), (8, 4), (32, 12), (4, 3)),
    'frames': ((4, 128), (0, 0), (1000, 128), (250, 1)),
    'overlapped': ((16, 16), (10, 10), (1024, 128), (101, 12)),
    'table 1a, third row': ((32, 16), (16, 16), (1024, 128), (63, 8)),
    'table 1a, fourth row': ((16, 32), (16, 16), (1024, 128), (64, 7)),
    'overlapped with a rest': ((4, 4), (3, 2), (18, 9), (5, 3)),
    'one patch': ((8, 8), (0, 0), (8, 8), (1, 1)),
}


def layout(name):
  size, stride, shape, grid = LAYOUTS[name]
  return config.Patch(size, stride), shape, grid


@pytest.mark.parametrize('name', LAYOUTS)
def test_the_grid_is_as_the_paper_counts_it(name):
  patch, shape, grid = layout(name)
  assert patches.grid_of(shape, patch) == grid


@pytest.mark.parametrize('name', LAYOUTS)
def test_each_patch_holds_its_own_pixels_in_order(name):
  patch, (t, f), (gt, gf) = layout(name)
  x = np.arange(2 * t * f, dtype=np.float32).reshape(2, t, f)
  cut = np.asarray(patches.patchify(x, patch))
  (pt, pf), (st, sf) = patch.size, patches.resolve_stride(patch)
  assert cut.shape == (2, gt * gf, pt * pf)
  for n in {0, 1 % (gt * gf), gt * gf // 2, gt * gf - 1}:
    at, af = n // gf * st, n % gf * sf
    np.testing.assert_array_equal(
        cut[:, n].reshape(2, pt, pf), x[:, at:at + pt, af:af + pf])


def test_patches_equal_the_released_code():
  golden = goldens.read('local_16')
  cut = patches.patchify(golden['spectrograms'], config.Patch())
  np.testing.assert_array_equal(cut[:, :16], golden['first_patches'])


@pytest.mark.parametrize('name', LAYOUTS)
def test_unpatchify_undoes_patchify(name):
  patch, (t, f), (gt, gf) = layout(name)
  x = np.random.default_rng(0).normal(size=(2, t, f)).astype(np.float32)
  cut = patches.patchify(x, patch)
  back = np.asarray(patches.unpatchify(cut, (t, f), patch))
  (pt, pf), (st, sf) = patch.size, patches.resolve_stride(patch)
  end_t, end_f = (gt - 1) * st + pt, (gf - 1) * sf + pf
  # Sums of up to four equal numbers, divided by how many: one rounding.
  np.testing.assert_allclose(
      back[:, :end_t, :end_f], x[:, :end_t, :end_f], rtol=3e-7)
  assert not back[:, end_t:].any() and not back[:, :, end_f:].any()


def test_where_patches_overlap_their_pixels_are_averaged():
  patch = config.Patch((2, 2), (1, 2))  # the middle row lies under both
  values = np.stack([np.full(4, 1.0), np.full(4, 4.0)])[None]
  merged = patches.unpatchify(values.astype(np.float32), (3, 2), patch)
  np.testing.assert_array_equal(merged[0], [[1, 1], [2.5, 2.5], [4, 4]])


@pytest.mark.parametrize('size, stride, message', [
    ((48, 16), (0, 0), 'Patches of 48 frames do not tile a spectrogram of '
     '1024: 16 are left over. Make it 1008 or 1056'),
    ((16, 24), (0, 0), 'Patches of 24 mel bins do not tile a spectrogram of '
     '128: 8 are left over. Make it 120 or 144'),
    ((2048, 16), (0, 0), 'A patch of 2048 frames does not fit a spectrogram of '
     '1024; set patch.size to 1..1024'),
    ((16, 0), (0, 0), 'A patch of 0 mel bins does not fit'),
    ((16, -4), (0, 0), 'A patch of -4 mel bins does not fit'),
    ((16, 16), (16, 17), 'A stride of 17 mel bins leaves gaps between patches '
     'of 16; set patch.stride to 1..16, or 0 for 16'),
    ((16, 16), (-1, 16), 'A stride of -1 frames leaves gaps'),
])
def test_patches_that_do_not_suit_the_spectrogram_are_refused(
    size, stride, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    patches.grid_of((1024, 128), config.Patch(size, stride))


def table_of(grid, width, positions, **settings):
  return patches.position_table(
      grid, width, config.Patch(positions=positions, **settings))


def test_the_released_positions_are_those_of_the_released_model():
  golden = goldens.read('positions')
  for width in (768, 512):
    table = table_of((64, 8), width, 'released')
    assert table.shape == (513, width) and table.dtype == np.float32
    # Both are rounded from float64, whose sines differ in the last place
    # between libraries; that can move a float32 in (0.5, 1) by 6e-8.
    np.testing.assert_allclose(
        goldens.sample(table, 4 * 4096), golden[str(width)], rtol=0, atol=6e-8)
  # Sums over the whole of both tables, as the released code prints them.
  table = table_of((64, 8), 768, 'released').astype(np.float64)
  assert abs(table.sum() - 171206.7415) < 1e-3
  assert abs(table_of((64, 8), 512, 'released').astype(
      np.float64).sum() - 113997.0248) < 1e-3
  assert not table[1, :3].any()
  np.testing.assert_allclose(
      table[2, :3], [0.84147098, 0.81525065, 0.78859304], atol=6e-8)
  np.testing.assert_array_equal(table[65, 384:387], table[2, :3])


@pytest.mark.parametrize('grid', [(64, 8), (101, 12), (250, 1), (3, 5)])
def test_each_half_of_a_position_codes_one_of_time_and_frequency(grid):
  gt, gf = grid
  width = 64
  table = table_of(grid, width, 'time_freq')
  assert not table[0].any()  # the class token's
  places = table[1:].reshape(gt, gf, width)
  freq, time = places[..., :width // 2], places[..., width // 2:]
  np.testing.assert_array_equal(freq, np.broadcast_to(freq[:1], freq.shape))
  np.testing.assert_array_equal(time, np.broadcast_to(time[:, :1], time.shape))

  def code(position):  # by the formula, one number at a time
    angles = [position / 10000 ** (k / (width // 4)) for k in range(width // 4)]
    return np.concatenate([np.sin(angles), np.cos(angles)])
  for f in range(gf):
    np.testing.assert_allclose(freq[0, f], code(f), atol=6e-8)
  for t in range(gt):
    np.testing.assert_allclose(time[t, 0], code(t), atol=6e-8)


def test_a_square_grid_is_the_same_in_both_layouts():
  # What the released code got wrong is the order of the axes; on a square grid
  # its columns are the frequencies.
  np.testing.assert_array_equal(
      table_of((6, 6), 32, 'released'),
      table_of((6, 6), 32, 'time_freq'))


def nearest(table, grid):
  """[N, 2] steps in (time, freq) from each token to the most similar one."""
  codes = table[1:]
  similarity = codes @ codes.T
  np.fill_diagonal(similarity, -np.inf)
  best = similarity.argmax(1)
  at = np.stack(np.divmod(np.arange(len(codes)), grid[1]), -1)
  return np.abs(at[best] - at)


def test_neighbours_have_similar_positions_in_the_correct_layout_only():
  grid = (64, 8)
  steps = nearest(table_of(grid, 768, 'time_freq'), grid)
  assert (steps.sum(1) == 1).all()
  steps = nearest(table_of(grid, 768, 'released'), grid)
  assert (steps.sum(1) > 1).any()


def test_every_place_has_a_code_of_its_own_in_every_layout():
  for name in patches.POSITIONS:
    for grid in ((64, 8), (101, 12), (13, 7)):
      table = table_of(grid, 64, name)
      assert len(np.unique(table[1:].round(5), axis=0)) == grid[0] * grid[1]


def test_a_shared_table_cannot_be_changed():
  table = table_of((3, 5), 32, 'time_freq')
  with pytest.raises(ValueError, match='read-only'):
    table[0, 0] = 1


@pytest.mark.parametrize('width, layout, message', [
    (30, 'time_freq', 'a width that is a multiple of 4, not 30'),
    (32, 'time_freqs', "patch.positions='time_freqs' is not known. Did you "
     "mean 'time_freq'? Known: time_freq, released, table."),
])
def test_a_wrong_table_is_refused(width, layout, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    table_of((4, 4), width, layout)


def test_positions_can_be_trained_only_as_a_table():
  with pytest.raises(ValueError, match="set patch.positions='table'"):
    table_of((4, 4), 32, 'released', train_positions=True)


TRAINED = {'positions_grid': (64, 8)}  # the released model's, of 10 s


@pytest.mark.parametrize('positions', ['time_freq', 'released'])
@pytest.mark.parametrize('grid', [(32, 8), (8, 8), (51, 6), (64, 8), (1, 1)])
def test_a_shorter_clip_keeps_each_places_code(positions, grid):
  trained = table_of((64, 8), 64, positions)
  moved = table_of(grid, 64, positions, **TRAINED)
  places = trained[1:].reshape(64, 8, 64)[:grid[0], :grid[1]]
  np.testing.assert_array_equal(moved[1:], places.reshape(-1, 64))
  np.testing.assert_array_equal(moved[0], trained[0])


def test_the_released_crop_gives_places_codes_that_they_were_not_trained_with():
  # util/pos_embed.py:139 keeps the first columns of an (8, 64) view, for 5 s.
  golden = goldens.read('adapt')
  cropped = golden['src_8x64'][0, 1:].reshape(8, 64, -1)[:, :32]
  np.testing.assert_array_equal(
      golden['crop_8x32'][0, 1:], cropped.reshape(256, -1))
  trained = table_of((64, 8), 64, 'released')[1:]
  cropped = trained.reshape(8, 64, 64)[:, :32].reshape(256, 64)
  moved = table_of((32, 8), 64, 'released', **TRAINED)[1:]
  assert (np.abs(cropped - moved) < 1e-6).all(1).mean() < 0.2
  # It is what a grid of its own gives.
  np.testing.assert_array_equal(
      cropped, table_of((32, 8), 64, 'released', positions_grid=(32, 8))[1:])


@pytest.mark.parametrize('positions', ['time_freq', 'released'])
def test_a_longer_clip_keeps_the_codes_it_was_trained_with(positions):
  trained = table_of((64, 8), 64, positions)
  longer = table_of((96, 8), 64, positions, **TRAINED)
  np.testing.assert_array_equal(longer[:513], trained)
  # What follows has codes of its own, too.
  assert len(np.unique(longer[1:].round(5), axis=0)) == 96 * 8


@pytest.mark.parametrize('positions', ['time_freq', 'released', 'table'])
def test_another_stride_keeps_the_codes_of_places_that_coincide(positions):
  moved = config.Patch(
      stride=(8, 8), positions=positions, positions_grid=(64, 8),
      positions_stride=(16, 16))
  trained = table_of((64, 8), 64, positions)
  if positions == 'table':
    trained = np.random.default_rng(0).normal(size=(513, 64)).astype(np.float32)
    table = np.asarray(patches.look_up(trained, (127, 15), moved))
  else:
    table = patches.position_table((127, 15), 64, moved)
  places = table[1:].reshape(127, 15, 64)
  trained = trained[1:].reshape(64, 8, 64)
  np.testing.assert_array_equal(places[::2, ::2], trained)
  # And those between are between.
  want = (trained[:-1] + trained[1:]) / 2
  if positions == 'time_freq':  # by the formula, not by a chord
    half = np.arange(63) + 0.5
    angles = half[:, None] / 10000 ** (np.arange(16) / 16)
    want = np.concatenate([np.sin(angles), np.cos(angles)], 1)[:, None]
    places = places[..., 32:]
  np.testing.assert_allclose(
      places[1::2, ::2], np.broadcast_to(want, (63, 8, want.shape[-1])),
      rtol=0, atol=2e-7)


def test_stride_ten_of_the_paper_reaches_no_further_than_stride_sixteen():
  moved = config.Patch(
      stride=(10, 10), positions='released', positions_grid=(64, 8),
      positions_stride=(16, 16))
  table = patches.position_table((101, 12), 768, moved)
  trained = table_of((64, 8), 768, 'released')
  # Frame 80 and bin 80 begin the 5th patch of the one and the 8th of the other.
  np.testing.assert_array_equal(table[1 + 8 * 12 + 8], trained[1 + 5 * 8 + 5])


def test_a_table_gives_back_what_it_holds():
  table = np.random.default_rng(0).normal(size=(513, 24)).astype(np.float32)
  settings = config.Patch(positions='table', **TRAINED)
  np.testing.assert_array_equal(
      patches.look_up(table, (64, 8), settings), table)
  shorter = np.asarray(patches.look_up(table, (32, 8), settings))
  np.testing.assert_array_equal(shorter, table[:257])


@pytest.mark.parametrize('positions, grid, message', [
    ('released', (64, 12), 'for 64 x 8 patches (time x mel), and have no code '
     'for place 11 along mel bins. Use fewer mel bins'),
    ('table', (65, 8), 'no code for place 64 along frames. Use fewer frames'),
    ('table', (64, 9), 'no code for place 8 along mel bins'),
])
def test_a_place_without_a_code_is_refused(positions, grid, message):
  settings = config.Patch(positions=positions, **TRAINED)
  with pytest.raises(ValueError, match=re.escape(message)):
    if positions == 'table':
      patches.look_up(np.zeros((513, 32), np.float32), grid, settings)
    else:
      patches.position_table(grid, 32, settings)
