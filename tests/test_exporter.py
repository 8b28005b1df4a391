"""Hugging Face's layout."""

import json
import logging
import re

import exchange
import numpy as np
import pytest

from audio_mae_jax.convert import exporter
from audio_mae_jax.convert import files
from audio_mae_jax.convert import importer

# Names that transformers 5.23 writes for these classes.
HF_BLOCK = [f'{name}.{kind}' for name in (
    'attention.attention.query', 'attention.attention.key',
    'attention.attention.value', 'attention.output.dense', 'layernorm_before',
    'layernorm_after', 'intermediate.dense', 'output.dense')
            for kind in ('weight', 'bias')]
HF_VIT = ['embeddings.cls_token', 'embeddings.position_embeddings',
          'embeddings.patch_embeddings.projection.weight',
          'embeddings.patch_embeddings.projection.bias',
          'layernorm.weight', 'layernorm.bias',
          *(f'encoder.layer.{i}.{name}' for i in range(2) for name in HF_BLOCK)]
HF_DECODER = ['decoder.mask_token', 'decoder.decoder_pos_embed',
              *(f'decoder.{name}.{kind}' for name in
                ('decoder_embed', 'decoder_norm', 'decoder_pred')
                for kind in ('weight', 'bias')),
              *(f'decoder.decoder_layers.{i}.{name}' for i in range(4)
                for name in HF_BLOCK)]


def test_hugging_face_gets_a_global_model_and_gives_it_back(tmp_path):
  weights = exchange.random_weights()
  folder = tmp_path / 'hf'
  exporter.export_weights(weights, 'huggingface', folder)
  tensors, settings = files.read(folder)
  assert set(tensors) == {f'vit.{name}' for name in HF_VIT} | set(HF_DECODER)
  assert settings['architectures'] == ['ViTMAEForPreTraining']
  assert settings['image_size'] == [256, 128] and settings['patch_size'] == 16
  assert settings['layer_norm_eps'] == 1e-6
  query = tensors['vit.encoder.layer.1.attention.attention.query.weight']
  fused = weights.params['encoder/blocks/01/attn/qkv/kernel']
  np.testing.assert_array_equal(query, fused[:, :48].T)
  # Heads come from config.json.
  back = importer.import_weights(folder)
  exchange.assert_same_bits(back.params, weights.params)
  assert back.config.model == weights.config.model
  assert back.config.patch == weights.config.patch


def test_hugging_face_gets_an_encoder(tmp_path):
  weights = exchange.random_weights({'model.decoder.name': 'local',
                            'model.decoder.heads': 16})
  with pytest.raises(ValueError, match='no local decoder, only the global one. '
                     'Export the encoder alone'):
    exporter.export_weights(weights, 'huggingface', tmp_path / 'hf')
  exporter.export_weights(
      weights, 'huggingface', tmp_path / 'hf', part='encoder')
  tensors, settings = files.read(tmp_path / 'hf')
  assert set(tensors) == set(HF_VIT)
  assert settings['architectures'] == ['ViTModel']
  back = importer.import_weights(tmp_path / 'hf')
  exchange.assert_same_bits(back.params, weights.part('encoder').params)


def test_hugging_face_gets_a_classifier_of_the_class_token(tmp_path):
  weights = exchange.random_weights({
      'task': 'classify', 'model.classifier.num_classes': 3,
      'model.classifier.pool': 'class_token'})
  exporter.export_weights(weights, 'huggingface', tmp_path / 'hf')
  tensors, settings = files.read(tmp_path / 'hf')
  assert set(tensors) == {f'vit.{name}' for name in HF_VIT} | {
      'classifier.weight', 'classifier.bias'}
  assert settings['id2label'] == {'0': 'LABEL_0', '1': 'LABEL_1',
                                  '2': 'LABEL_2'}
  back = importer.import_weights(tmp_path / 'hf')
  exchange.assert_same_bits(back.params, weights.params)
  assert back.config.model.classifier == weights.config.model.classifier


def test_hugging_face_gets_the_front_end_if_it_has_it(
    tmp_path, caplog, monkeypatch):
  # A command that was tested before may have turned this off.
  monkeypatch.setattr(logging.getLogger('audio_mae_jax'), 'propagate', True)
  weights = exchange.random_weights({'frontend.mean': -6.5})
  exporter.export_weights(weights, 'huggingface', tmp_path / 'hf')
  found = json.loads((tmp_path / 'hf' / 'preprocessor_config.json').read_text())
  assert found['feature_extractor_type'] == 'ASTFeatureExtractor'
  assert (found['max_length'], found['mean']) == (256, -6.5)
  with caplog.at_level('WARNING', 'audio_mae_jax'):
    assert not exporter.feature_extractor_config(exchange.random_weights(
        {'frontend.window': 'hamming', 'frontend.hop_ms': 20.0}).config)
  assert ("no feature extractor of transformers has frontend.hop_ms=20.0, "
          "frontend.window='hamming'") in caplog.text


@pytest.mark.parametrize('spelling', ['in memory', 'as written by 5.23'])
def test_all_spellings_of_hugging_face_are_read(spelling, tmp_path):
  weights = exchange.random_weights()
  exporter.export_weights(weights, 'huggingface', tmp_path / 'hf')
  tensors, _ = files.read(tmp_path / 'hf')

  def respell(name):
    if spelling == 'as written by 5.23':
      return name.replace('decoder.decoder_layers', 'decoder.decoder_encoder'
                          '.layer')
    for old, new in (
        ('vit.encoder.layer', 'vit.layers'),
        ('attention.attention.query', 'attention.q_proj'),
        ('attention.attention.key', 'attention.k_proj'),
        ('attention.attention.value', 'attention.v_proj'),
        ('attention.output.dense', 'attention.o_proj'),
        ('intermediate.dense', 'mlp.fc1'), ('output.dense', 'mlp.fc2')):
      name = name.replace(old, new)
    return name

  exchange.write(tmp_path / 'x.safetensors', {
      **{respell(name): x for name, x in tensors.items()},
      'vit.pooler.dense.bias': np.zeros(48, np.float32)})  # means nothing here
  back = importer.import_weights(tmp_path / 'x.safetensors', given={
      'model.encoder.heads': 3, 'model.decoder.heads': 4})
  exchange.assert_same_bits(back.params, weights.params)


@pytest.mark.parametrize('overrides, message', [
    ({'patch.stride': (10, 10)}, 'no overlapping patches (patch.stride=(10, 10)'
     '); export to timm'),
    ({'task': 'classify', 'model.classifier.num_classes': 5},
     'no classifier that averages patches and then normalises; export to timm'),
])
def test_what_hugging_face_has_not_is_refused(overrides, message, tmp_path):
  with pytest.raises(ValueError, match=re.escape(message)):
    exporter.export_weights(
        exchange.random_weights(overrides), 'huggingface', tmp_path / 'hf')
  assert not list(tmp_path.iterdir())
