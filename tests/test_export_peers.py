"""Exported weights in the projects that they were exported to; needs [torch].

The models there are built from the exported files alone, and must compute what
ours does: float32 on both sides, so what is left is rounding.
"""

import dataclasses

import exchange
import jax
import numpy as np
import pytest
import reference

from audio_mae_jax import frontend
from audio_mae_jax import losses
from audio_mae_jax import masking
from audio_mae_jax import patches
from audio_mae_jax import weights as weights_lib
from audio_mae_jax.convert import exporter
from audio_mae_jax.convert import files
from audio_mae_jax.convert import importer
from audio_mae_jax.export import program as program_lib
from audio_mae_jax.export import report
from audio_mae_jax.models import classifier
from audio_mae_jax.models import encoder
from audio_mae_jax.models import mae

torch = pytest.importorskip('torch')
peers = pytest.importorskip('peers')  # before transformers: it mends an import
transformers = pytest.importorskip('transformers')

SHAPE = (256, 128)  # 16 x 8 patches


def small(overrides=None):
  """Weights at a scale at which activations stay of order one."""
  weights = exchange.random_weights(overrides)
  return dataclasses.replace(weights, params={
      name: x * np.float32(0.1 if x.ndim > 1 else 0.3)
      + np.float32(name.endswith('scale'))
      for name, x in weights.params.items()})


def spectrograms(shape=SHAPE):
  return np.random.default_rng(2).normal(size=(2, *shape)).astype(np.float32)


def ours(make, weights, x, part=None):
  model = make(weights.config)
  params = reference.nest(weights.params)
  grid = patches.grid_of(x.shape[1:], weights.config.patch)
  return np.asarray(jax.jit(lambda params: model.apply(
      {'params': params}, patches.patchify(x, weights.config.patch), grid))(
          params[part] if part else params))


def load(name, folder):
  return getattr(transformers, name).from_pretrained(folder).eval()


def assert_whole(model, folder):
  """Every parameter of the model came from the folder."""
  _, info = type(model).from_pretrained(folder, output_loading_info=True)
  assert not any(info[kind] for kind in (
      'missing_keys', 'unexpected_keys', 'mismatched_keys')), info


@pytest.mark.parametrize('layout', ['released', 'time_freq', 'table'])
def test_a_vit_of_hugging_face_computes_what_the_encoder_does(layout, tmp_path):
  weights = small({'patch.positions': layout})
  exporter.export_weights(
      weights, 'huggingface', tmp_path / 'hf', part='encoder')
  model = transformers.ViTModel.from_pretrained(
      tmp_path / 'hf', add_pooling_layer=False).eval()
  auto = transformers.AutoModel.from_pretrained(tmp_path / 'hf')
  assert isinstance(auto, transformers.ViTModel)
  x = spectrograms()
  with torch.no_grad():
    want = model(torch.from_numpy(x[:, None])).last_hidden_state.numpy()
  got = ours(encoder.make, weights, x, 'encoder')
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)


def test_hugging_face_goes_from_audio_to_tokens(tmp_path):
  weights = small({'frontend.mean': -6.5, 'frontend.std': 4.75})
  exporter.export_weights(
      weights, 'huggingface', tmp_path / 'hf', part='encoder')
  extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / 'hf')
  assert isinstance(extractor, transformers.ASTFeatureExtractor)
  model = transformers.AutoModel.from_pretrained(tmp_path / 'hf').eval()
  program = program_lib.make(weights)
  audio = report.clips(program, 33_000)  # 204 of 256 frames
  inputs = extractor(list(audio), sampling_rate=16000, return_tensors='np')
  features = frontend.features(
      audio, np.full(len(audio), audio.shape[1]), weights.config.frontend)
  # What two front ends in float32 differ by in quiet cells (frontend.md).
  np.testing.assert_allclose(
      inputs['input_values'], features, rtol=0, atol=2e-3)
  with torch.no_grad():
    got = model(torch.from_numpy(inputs['input_values'])[:, None].float())
  want = ours(encoder.make, weights, np.asarray(features), 'encoder')
  np.testing.assert_allclose(
      got.last_hidden_state.numpy(), want, rtol=0, atol=1e-3)


def test_a_classifier_of_hugging_face_computes_what_ours_does(tmp_path):
  weights = small({
      'task': 'classify', 'model.classifier.num_classes': 5,
      'model.classifier.pool': 'class_token'})
  exporter.export_weights(weights, 'huggingface', tmp_path / 'hf')
  model = load('ViTForImageClassification', tmp_path / 'hf')
  assert_whole(model, tmp_path / 'hf')
  x = spectrograms()
  with torch.no_grad():
    want = model(torch.from_numpy(x[:, None])).logits.numpy()
  np.testing.assert_allclose(
      ours(classifier.make, weights, x), want, rtol=0, atol=2e-5)


def test_a_mae_of_hugging_face_computes_what_ours_does(tmp_path):
  # Its position tables are initialised for square images only.
  weights = small({'frontend.num_frames': 128})
  exporter.export_weights(weights, 'huggingface', tmp_path / 'hf')
  model = load('ViTMAEForPreTraining', tmp_path / 'hf')
  assert_whole(model, tmp_path / 'hf')
  x = spectrograms((128, 128))
  noise = np.random.default_rng(3).random((2, 64)).astype(np.float32)
  with torch.no_grad():
    want = model(torch.from_numpy(x[:, None]), noise=torch.from_numpy(noise))
  config = weights.config
  mask = masking.from_scores(noise, 12)
  pixels = patches.patchify(x, config.patch)
  got = jax.jit(lambda params: mae.make(config).apply(
      {'params': params}, pixels, (8, 8), mask).prediction)(
          reference.nest(weights.params))
  np.testing.assert_array_equal(want.mask.numpy() > 0, mask.removed)
  np.testing.assert_allclose(got, want.logits.numpy(), rtol=0, atol=2e-5)
  loss = losses.masked_mse(
      got, losses.normalize_patches(pixels), mask.removed).mean()
  np.testing.assert_allclose(loss, want.loss.numpy(), rtol=1e-6)
  # And what transformers writes comes back.
  model.save_pretrained(tmp_path / 'again')
  back = importer.import_weights(tmp_path / 'again')
  exchange.assert_same_bits(back.params, weights.params)


@pytest.mark.parametrize('task', ['pretrain', 'classify', 'embed'])
def test_timm_computes_what_ours_does(task, tmp_path):
  weights = small({} if task == 'pretrain' else {
      'task': 'classify',
      'model.classifier.num_classes': 5 if task == 'classify' else 0})
  path = tmp_path / 'timm.safetensors'
  exporter.export_weights(weights, 'timm', path)
  model = peers.vision_transformer.VisionTransformer(
      img_size=SHAPE, patch_size=16, in_chans=1, embed_dim=48, depth=2,
      num_heads=3, num_classes=5 if task == 'classify' else 0,
      global_pool='token' if task == 'pretrain' else 'avg').eval()
  tensors, _ = files.read(path)
  model.load_state_dict(
      {name: torch.from_numpy(x.copy()) for name, x in tensors.items()},
      strict=True)
  x = spectrograms()
  with torch.no_grad():
    if task == 'pretrain':
      want = model.forward_features(torch.from_numpy(x[:, None])).numpy()
      got = ours(encoder.make, weights, x, 'encoder')
    else:
      want = model(torch.from_numpy(x[:, None])).numpy()
      got = ours(classifier.make, weights, x)
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)


def test_what_timm_writes_comes_back(tmp_path):
  model = peers.vision_transformer.VisionTransformer(
      img_size=SHAPE, patch_size=16, in_chans=1, embed_dim=48, depth=2,
      num_heads=3, num_classes=5, global_pool='avg').eval()
  torch.save(model.state_dict(), tmp_path / 'timm.pth')
  weights = importer.import_weights(
      tmp_path / 'timm.pth', given=exchange.HEADS)
  assert weights.config.patch.positions == 'table'  # learnt from noise
  assert weights_lib.grid_of(weights.config) == (16, 8)
  x = spectrograms()
  with torch.no_grad():
    want = model(torch.from_numpy(x[:, None])).numpy()
  np.testing.assert_allclose(
      ours(classifier.make, weights, x), want, rtol=0, atol=2e-5)
