"""Probes on made-up features, and `--config.mode=probe` from end to end."""

import dataclasses
import json
import logging
import pathlib
import re
import runpy

import jax
import numpy as np
import pytest
import reference
from sklearn import neighbors
import soundfile
import tiny

from audio_mae_jax import config as config_lib
from audio_mae_jax import features
from audio_mae_jax import frontend
from audio_mae_jax import init_from
from audio_mae_jax import metrics
from audio_mae_jax import probe
from audio_mae_jax import probes
from audio_mae_jax import step
from audio_mae_jax import weights
from audio_mae_jax.data import manifests

DEPTH, N, D = 3, 6, 8
QUICK = dataclasses.replace(
    config_lib.Probe(), epochs=30, learning_rate=0.03, batch_size=16)


def made(seed, where, multilabel=False, count=96):
  """Features that are noise, but for what tells three classes apart.

  It is in the mean of the last block ('last'), of the first one ('first'), or
  in the one patch that is marked, while others carry it away from the mean
  ('patch').
  """
  rng = np.random.default_rng(seed)
  targets = np.eye(3, dtype=np.uint8)[np.arange(count) % 3]
  if multilabel:
    targets = rng.integers(0, 2, (count, 3)).astype(np.uint8)
  signal = 3 * (targets @ np.eye(3, D) - np.full(D, 0.3))
  means = rng.normal(size=(count, DEPTH, D))
  tokens = rng.normal(0, 0.3, (count, N, D))
  if where == 'patch':
    marked = rng.integers(0, N, count)
    tokens -= signal[:, None] / (N - 1)
    tokens[np.arange(count), marked] += signal * N / (N - 1)
    tokens[..., -1] = 0
    tokens[np.arange(count), marked, -1] = 6
  else:
    means[:, -1 if where == 'last' else 0] += signal
  return features.Features(
      means.astype(np.float32), targets, np.arange(count),
      tokens.astype(np.float16))


def score(kind, where, multilabel=False, settings=QUICK, seed=0):
  """(scores, their main metric) of a probe that 96 others were fitted to."""
  test = made(1, where, multilabel)
  scores = probes.PROBES[kind](
      made(0, where, multilabel), test, settings, multilabel, seed)
  values = metrics.compute(scores, test.targets, multilabel).values
  return scores, values[metrics.main_metric(multilabel)]


@pytest.mark.parametrize('multilabel', [False, True])
@pytest.mark.parametrize('kind, reads', [
    ('linear', 'last'), ('knn', 'last'), ('gated', 'last'),
    ('gated', 'first'), ('attentive', 'patch')])
def test_a_probe_finds_what_is_where_it_reads(kind, reads, multilabel):
  assert score(kind, reads, multilabel)[1] > 0.9


@pytest.mark.parametrize('kind, elsewhere', [
    ('linear', 'first'), ('knn', 'first'), ('gated', 'patch')])
def test_and_nothing_where_it_does_not(kind, elsewhere):
  assert score(kind, elsewhere)[1] < 0.6  # a third is chance


@pytest.mark.parametrize('kind', probes.PROBES)
def test_scores_depend_on_the_seed_alone(kind):
  first, again, other = (score(kind, 'last', seed=s)[0] for s in (0, 0, 1))
  assert first.shape == (96, 3)
  np.testing.assert_array_equal(first, again)
  # By it the clips to choose on are drawn, and the batches.
  assert (np.abs(first - other).max() > 1e-4) == (kind != 'knn')


def test_an_epoch_in_parts_is_the_same_epoch(monkeypatch):
  whole = score('gated', 'first')[0]
  monkeypatch.setattr(probes, '_CHUNK_BYTES', 16 * DEPTH * D * 4 * 4)
  parts = []
  epoch = probes._epoch
  monkeypatch.setattr(probes, '_epoch', lambda *args: (
      parts.append(len(args[-1])), epoch(*args))[1])
  np.testing.assert_allclose(score('gated', 'first')[0], whole, atol=1e-4)
  assert parts == [4, 2] * QUICK.epochs


def test_attention_has_a_query_per_head_and_sums_values():
  module = probes.Attentive(heads=2, classes=3)
  x = np.asarray(made(0, 'patch').tokens[:2], np.float32)
  params = jax.tree.map(
      lambda leaf: np.random.default_rng(leaf.size).normal(
          size=leaf.shape).astype(np.float32),
      jax.eval_shape(lambda: module.init(jax.random.key(0), x))['params'])
  want = []
  for tokens in x:
    heads = []
    for query, value in zip(params['query'], params['value']):
      weight = np.exp(tokens @ query / np.sqrt(D))
      heads.append(weight / weight.sum() @ (tokens @ value))
    y = np.concatenate(heads)
    y = (y - y.mean()) / np.sqrt(y.var() + 1e-6)
    y = y * params['norm']['scale'] + params['norm']['bias']
    want.append(y @ params['head']['kernel'] + params['head']['bias'])
  np.testing.assert_allclose(
      probes._apply(module, params, x), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('rows', [1024, 7])
def test_neighbours_vote_as_in_scikit_learn(rows, monkeypatch):
  monkeypatch.setattr(probes, '_ROWS', rows)
  train, test = made(0, 'last'), made(1, 'last')
  test.means[:3] = train.means[:3]  # distance 0
  mean, std = train.means[:, -1].mean(0), train.means[:, -1].std(0)
  reference = neighbors.KNeighborsClassifier(
      5, weights=lambda d: 1 / np.maximum(d, 1e-6), metric='cosine')
  reference.fit((train.means[:, -1] - mean) / std, train.targets.argmax(1))
  got = probes.knn(
      train, test, dataclasses.replace(QUICK, neighbours=5), False, 0)
  np.testing.assert_allclose(
      got, reference.predict_proba((test.means[:, -1] - mean) / std),
      atol=1e-3)


def test_the_penalty_is_chosen_on_clips_held_out_and_then_all_are_used(
    monkeypatch):
  train, calls = made(0, 'last'), []

  def logistic(x, targets, asked, c, multilabel):
    calls.append((len(x), len(asked), c))
    held = train.targets[probes.held_out(train.targets, 3)]
    return held if len(asked) == len(held) and c == 0.1 else (
        np.zeros((len(asked), 3)))

  monkeypatch.setattr(probes, '_logistic', logistic)
  probes.linear(train, made(1, 'last', count=50), QUICK, False, 3)
  assert [call[:2] for call in calls] == [(78, 18)] * 6 + [(96, 50)]
  assert len({c for *_, c in calls[:-1]}) == 6 and calls[-1][2] == 0.1


def test_a_fifth_of_each_class_is_held_out():
  label = np.repeat([0, 1, 2, 3], [50, 9, 2, 1])
  targets = np.eye(4, dtype=np.uint8)[label]
  held = probes.held_out(targets, 0)
  assert [held[label == c].sum() for c in range(4)] == [10, 1, 1, 0]
  assert (held != probes.held_out(targets, 1)).any()
  # Of several labels the rarest counts; without a label they are one class.
  targets[:, 0] = 1
  assert [probes.held_out(targets, 0)[label == c].sum()
          for c in range(4)] == [10, 1, 1, 0]
  assert probes.held_out(0 * targets, 0).sum() == 62 // 5


@pytest.mark.parametrize('multilabel', [False, True])
def test_a_class_that_no_clip_has_gets_no_clip(multilabel):
  train, test = made(0, 'last', multilabel), made(1, 'last', multilabel)
  widen = lambda x: x._replace(targets=np.pad(x.targets, ((0, 0), (0, 1))))
  scores = probes.linear(widen(train), widen(test), QUICK, multilabel, 0)
  assert np.isfinite(scores).all()
  if multilabel:
    assert (scores[:, 3] == 0).all()
  else:
    assert (scores[:, 3] < scores[:, :3].min(1)).all()


def test_two_classes_have_a_score_each():
  two = lambda seed: made(seed, 'last')._replace(
      targets=np.eye(2, dtype=np.uint8)[np.arange(96) % 3 % 2])
  scores = probes.linear(two(0), two(1), QUICK, False, 0)
  np.testing.assert_allclose(scores[:, 0], -scores[:, 1])
  assert (scores.argmax(1) == two(1).targets.argmax(1)).mean() > 0.9


@pytest.mark.parametrize('settings, kinds, message', [
    ({}, (), 'config.probe.kinds is empty; choose of linear, knn,'),
    ({}, ('liner',), "config.probe.kinds='liner' is not known. Did you mean "
     "'linear'?"),
    ({'neighbours': 0}, ('knn',), 'config.probe.neighbours=0 must be 1'),
    ({'epochs': 0}, ('gated',), 'config.probe.epochs=0 must be 1'),
    ({'batch_size': 0}, ('gated',), 'config.probe.batch_size=0 must be 1'),
    ({'learning_rate': 0.0}, ('gated',), 'learning_rate=0.0 must be positive'),
    ({'weight_decay': -1.0}, ('gated',), 'weight_decay=-1.0 not negative')])
def test_wrong_settings_are_refused(settings, kinds, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    probes.check(
        dataclasses.replace(QUICK, **settings), kinds, 'config.probe.kinds')


def test_more_neighbours_than_clips_are_refused():
  with pytest.raises(ValueError, match='neighbours=97, and there are 96'):
    score('knn', 'last', settings=dataclasses.replace(QUICK, neighbours=97))


# From end to end, on tones that lie in three files' worth of folds.

HZ, CLIP_S, CLIPS = 16000, 0.65, 24
ONE = jax.devices()[:1]  # test_features.py has them all
MODEL = tiny.MODEL | {'model.encoder.depth': 2, 'data.clip_s': CLIP_S}


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with clips of two classes in three folds, and with weights."""
  folder, rng = tmp_path_factory.mktemp('probe'), np.random.default_rng(0)
  lines = ['path,label,fold']
  for i in range(CLIPS):
    hz = rng.uniform(200, 900) + 3000 * (i % 2)
    tone = np.sin(2 * np.pi * hz / HZ * np.arange(round(CLIP_S * HZ)))
    soundfile.write(
        folder / f'{i}.wav', 0.3 * tone + rng.normal(0, 0.05, len(tone)), HZ)
    lines.append(f'{i}.wav,{("low", "high")[i % 2]},{i % 3}')
  (folder / 'list.csv').write_text('\n'.join(lines) + '\n')
  (folder / 'more.csv').write_text('\n'.join([*lines, '0.wav,mid,0']) + '\n')
  config = weights.with_positions(tiny.config(MODEL))
  weights.save(folder / 'weights', weights.Weights(
      features.random_params(config), config, {}))
  return folder


def recipe(place, overrides=None):
  return tiny.config({}, {
      'mode': 'probe', 'workdir': str(place / 'run'), 'data.root': str(place),
      'init_from': str(place / 'weights'), 'labels.multilabel': False,
      'data.clip_s': CLIP_S, 'train.batch_size': 8, 'train.seed': 1,
      'probe.kinds': ('linear', 'knn'), 'probe.neighbours': 3,
      'probe.train.name': 'manifest', 'probe.train.path': 'list.csv',
      'probe.train.folds': '!0', 'probe.test.name': 'manifest',
      'probe.test.path': 'list.csv', 'probe.test.folds': '0',
      **(overrides or {})})


FOLDS = {'folds': ('0', '2'), 'probe.train.folds': '', 'probe.test.name': '',
         'probe.test.path': '', 'probe.test.folds': ''}


@pytest.fixture(scope='module')
def once(place):
  """What a probe of all kinds found."""
  config = recipe(place, {
      'probe.kinds': tuple(probes.PROBES), 'probe.epochs': 2,
      'workdir': str(place / 'once')})
  return probe.probe(config, ONE)


def test_a_probe_leaves_its_metrics_and_scores(place, once):
  folder = place / 'once'
  assert json.loads((folder / 'probe.json').read_text()) == once
  assert once['metric'] == 'accuracy'
  assert set(once['results']) == {'trained', 'untrained'}
  for encoder, kinds in once['results'].items():
    assert list(kinds) == list(probes.PROBES)
    for kind, values in kinds.items():
      with np.load(folder / 'probe' / f'{kind}_{encoder}.npz') as saved:
        assert list(saved['ids']) == [f'{i}.wav' for i in range(0, CLIPS, 3)]
        assert list(saved['class_names']) == ['high', 'low']
        np.testing.assert_array_equal(saved['targets'][:3], [[0, 1], [1, 0],
                                                             [0, 1]])
        right = saved['scores'].argmax(1) == saved['targets'].argmax(1)
      assert values['accuracy'] == right.mean()
  assert once['results']['trained']['linear']['accuracy'] > 0.8
  assert sorted(path.name for path in folder.iterdir()) == [
      '.lock', 'features', 'probe', 'probe.json']


def test_folds_share_their_features(place, caplog):
  config = recipe(place, FOLDS)
  with caplog.at_level(logging.INFO, 'audio_mae_jax'):
    found = probe.probe(config, ONE)['results']
  assert caplog.text.count('24 clips, 2 classes: computing') == 2
  assert 'as computed before' not in caplog.text
  for encoder, kinds in found.items():
    for kind, values in kinds.items():
      each = [values['folds'][fold]['accuracy'] for fold in ('0', '2')]
      np.testing.assert_allclose(values['mean'], np.mean(each))
      np.testing.assert_allclose(values['std'], np.std(each, ddof=1))
      for fold in ('0', '2'):
        path = place / 'run' / 'probe' / f'{kind}_{encoder}_{fold}.npz'
        with np.load(path) as saved:
          assert list(saved['ids']) == [
              f'{i}.wav' for i in range(int(fold), CLIPS, 3)]
          truth = np.arange(int(fold), CLIPS, 3) % 2 == 0
          np.testing.assert_array_equal(saved['targets'][:, 1], truth)
  # A fold of many is the same as one alone; and a second run reads the first.
  caplog.clear()
  with caplog.at_level(logging.INFO, 'audio_mae_jax'):
    again = probe.probe(config, ONE)['results']
  assert again == found and caplog.text.count('as computed before') == 2
  assert 'trained           ' in caplog.text and '+-' in caplog.text


def test_a_fold_of_many_is_the_same_as_one_alone(place, once):
  found = probe.probe(recipe(place, FOLDS | {
      'workdir': str(place / 'run'), 'probe.untrained': False}), ONE)
  for kind in ('linear', 'knn'):
    assert (found['results']['trained'][kind]['folds']['0']
            == once['results']['trained'][kind])


def test_a_manifest_is_parsed_once_for_all_folds(place, monkeypatch):
  parse, parsed = manifests._csv, []

  def counted(path):
    parsed.append(path)
    return parse(path)

  monkeypatch.setitem(manifests.FORMATS, '.csv', counted)
  parts = probe._parts(recipe(place, FOLDS))
  assert [len(split.source) for split in parts.by_fold['2']] == [16, 8]
  assert parsed == [str(place / 'list.csv')]


def test_a_fold_of_which_no_clip_can_be_read_is_an_error(place):
  config = recipe(place)
  _, split = probe.open_splits(config, config.probe)
  with pytest.raises(ValueError, match='a fold without clips cannot be tested'):
    probe._of(split, split, made(0, 'last', count=0))


@pytest.mark.parametrize('overrides, message', [
    ({'init_from': ''}, 'config.init_from is empty: say whose encoder'),
    ({'probe.kinds': ('lin',)}, "config.probe.kinds='lin' is not known."),
    ({'probe.train.name': '', 'probe.train.path': '', 'probe.train.folds': ''},
     'config.probe.train.name is empty: a probe needs labelled clips'),
    ({'probe.test.name': '', 'probe.test.path': '', 'probe.test.folds': ''},
     'config.probe.test.name is empty: a probe needs labelled clips'),
    ({'probe.train.classes': ('low',), 'probe.test.classes': ('low',)},
     'config.probe.train has 1 classes, and a probe needs 2'),
    ({'probe.test.classes': ('low', 'middle')}, "no class 'middle'"),
    ({'probe.test.path': 'more.csv'}, 'config.probe.test has labels that are '
     "missing from the class list: 'mid'"),
    ({'probe.train.path': 'more.csv'}, 'config.probe.train has no clip of 1 of '
     "its 3 classes: 'mid'"),
    ({'probe.train.folds': '!1'},
     '8 of the 8 clips of config.probe.test are in the train split as well'),
    ({'probe.test.folds': '7'}, "has no fold '7'; it has 0, 1, 2"),
    ({'frontend.mean': 0.5}, 'config.frontend.mean=0.5 has no effect'),
    ({'folds': ('0',)}, 'leave config.probe.test.name and config.probe.train.'),
    ({**FOLDS, 'folds': ('0', '0')}, "('0', '0') names a fold twice"),
])
def test_a_probe_that_cannot_be_is_refused(place, overrides, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    probe.probe(recipe(place, {'workdir': str(place / 'no')} | overrides))
  assert not (place / 'no').exists()


def test_other_weights_in_a_process_end_a_probe_before_it_writes(
    place, monkeypatch):
  def other(config, params):
    assert 'encoder/blocks/00/attn/qkv/kernel' in params
    raise ValueError('not the same weights')

  monkeypatch.setattr(init_from, 'check_same', other)
  with pytest.raises(ValueError, match='not the same weights'):
    probe.probe(recipe(place, {'workdir': str(place / 'no')}))
  assert not (place / 'no').exists()


@pytest.fixture(scope='module')
def online(place):
  """(config, program) of a pre-training that is probed as it goes."""
  config = recipe(place, MODEL | {
      'mode': 'train', 'probe.online': ('linear', 'knn'),
      'data.train.name': 'synthetic', 'optimizer.warmup_epochs': 0.0})
  return config, step.build(config, 1, ONE)


def test_online_gives_what_a_probe_of_these_weights_gives(
    place, online, once, monkeypatch):
  config, program = online
  traced, original = [], frontend.features
  monkeypatch.setattr(frontend, 'features', lambda *args: (
      traced.append(1), original(*args))[1])
  probing = probe.Online(config, program)
  params = reference.nest(weights.load(place / 'weights').params)
  state = np.random.get_state()[1].copy()
  found = probing.measure(params)
  want = once['results']['trained']
  assert found == {
      'linear_accuracy': want['linear']['accuracy'],
      'knn_accuracy': want['knn']['accuracy'], 'num_clips': 8}
  assert probing.measure(params) == found
  assert len(traced) == 1  # compiled once
  np.testing.assert_array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize('settings, message', [
    ({'online': ('linear', 'gated')}, "config.probe.online has 'gated', which "
     'trains for minutes at each evaluation: linear and knn are for this.'),
    ({'online': ()}, 'config.probe.online is empty'),
    ({'train': config_lib.Source()}, 'config.probe.train.name is empty')])
def test_online_refuses_what_it_cannot_do(online, settings, message):
  config, program = online
  config = dataclasses.replace(
      config, probe=dataclasses.replace(config.probe, **settings))
  with pytest.raises(ValueError, match=re.escape(message)):
    probe.Online(config, program)


def load_recipe(clips):
  path = pathlib.Path(__file__).parents[1] / 'configs' / 'probe.py'
  return runpy.run_path(str(path))['get_config'](clips)


@pytest.mark.parametrize('clips', ['own', 'esc50', 'demo'])
def test_the_recipe_is_whole_for_every_set(clips):
  config = config_lib.typed(load_recipe(clips))
  assert (config.mode, config.name) == ('probe', f'probe_{clips}')
  assert bool(config.folds) != bool(config.probe.test.name)
  probes.check(config.probe, config.probe.kinds, '')
  if clips == 'demo':
    train, test = probe.open_splits(config, config.probe)
    assert train.source.class_names == test.source.class_names


def test_the_recipe_refuses_other_sets():
  with pytest.raises(ValueError, match='there are own, esc50 and demo'):
    load_recipe('esc10')
