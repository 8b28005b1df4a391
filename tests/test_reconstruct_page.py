"""The page of a report: complete, alone, and working in a real browser."""

import base64
import io
import json
import pathlib
import re
import shutil
import time

import jax
import numpy as np
import PIL.Image
import pytest
import soundfile
import tiny

from audio_mae_jax import trees
from audio_mae_jax import weights
from audio_mae_jax.reconstruct import __main__ as command
from audio_mae_jax.reconstruct import media
from audio_mae_jax.tasks import pretrain

CONFIG = tiny.config(tiny.MODEL, {'model.decoder.depth': 1})
NAME = 'tones & "noise" <1>.wav'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Of weights and a sound; their report is at 'report'."""
  place = tmp_path_factory.mktemp('page')
  t = np.arange(12000) / 16000
  noise = np.random.default_rng(0).normal(size=len(t))
  soundfile.write(
      place / NAME, 0.3 * np.sin(2000 * t + 900 * t * t) + 0.02 * noise, 16000)
  params = jax.jit(pretrain.Pretrain(CONFIG).init)(jax.random.key(0))
  weights.save(place / 'weights', weights.Weights(
      {name: np.asarray(x) for name, x in trees.flatten(params).items()},
      weights.with_positions(CONFIG), {}))
  command.main([
      str(place / NAME), '--checkpoint', str(place / 'weights'), '--output',
      str(place / 'report'), '--mask', 'unstructured', 'time', 'gaps',
      '--gaps', '60', '--ratio', '0.9', '--draws', '2', '--iterations',
      '3'])
  return place


@pytest.fixture(scope='module')
def html(folder):
  return (folder / 'report/index.html').read_text(encoding='utf-8')


def contents(html, kind):
  return [base64.b64decode(text) for text in
          re.findall(rf'data:{kind};base64,([A-Za-z0-9+/=]+)', html)]


def test_page_needs_nothing_but_itself(html):
  assert '//' not in re.sub(
      r'data:[a-z/]+;base64,[A-Za-z0-9+/=]+', '', html).replace(
          '// Without', '').replace('// The player', '').replace(
              '// What is', '')
  assert "default-src 'none'" in html
  assert '$' not in re.sub(r'<script>.*?</script>', '', html, flags=re.S)


def test_all_sounds_are_the_clip_in_16_bits(html):
  sounds = [soundfile.read(io.BytesIO(x), dtype='int16')
            for x in contents(html, 'audio/wav')]
  # The original; for each of two views masked, shown, and four choices.
  assert len(sounds) == 1 + 2 * 6
  assert {(len(x), rate) for x, rate in sounds} == {(400 + 63 * 160, 16000)}
  assert max(np.abs(x.astype(int)).max() for x, _ in sounds) < 32767


def test_all_pictures_have_the_clips_frames_or_patches(html):
  sizes = [PIL.Image.open(io.BytesIO(x)).size
           for x in contents(html, 'image/png')]
  heads = (1 + 2) * 2 * 2  # nothing hidden and two views, two heads
  assert sorted(set(sizes)) == [(8, 8), (64, 128), (128, 1)]
  assert sizes.count((8, 8)) == heads
  assert sizes.count((64, 128)) == 1 + 2 * 6


def test_missing_pixels_are_transparent_and_low_bins_lie_below():
  x = np.zeros((3, 2), np.float32)
  x[2, 0] = 1
  x[0, 1] = np.nan
  image = PIL.Image.open(io.BytesIO(base64.b64decode(
      media.spectrogram(x, (0, 1)).partition(',')[2])))
  pixels = np.array(image)
  assert pixels.shape == (2, 3, 4)
  assert pixels[0, 0, 3] == 0 and (pixels[..., 3] > 0).sum() == 5
  assert pixels[1, 2, :3].sum() > 600 > 10 * pixels[0, 0, :3].sum()


def test_names_of_files_are_text(html):
  assert '<h1>tones &amp; &quot;noise&quot; &lt;1&gt;.wav</h1>' in html
  # 0.9 of eight time steps.
  assert 'Left out: A share of 0.9' in html
  assert html.count('does not fit this clip') == 2


def test_numbers_are_those_of_the_page(folder, html):
  found = json.loads((folder / 'report/numbers.json').read_text())
  assert list(found['log_spectral_distance_db']) == [
      'unstructured', 'gaps-60']
  row = found['errors'][0]
  assert (row['strategy'], row['ratio'], row['removed']) == (
      'unstructured', 0.9, 58 / 64)
  assert f'{np.mean(row["mse"]):.3f} <span' in html
  for view in found['log_spectral_distance_db'].values():
    assert f'{np.mean(view["model"]):.1f}' in html
    assert len(view['truth']) == 2


def test_command_refuses_what_it_would_replace_or_cannot_show(
    folder, tmp_path, capsys):
  def error(*argv):
    with pytest.raises(SystemExit):
      command.main([str(folder / NAME), *argv])
    return capsys.readouterr().err
  assert 'exists already' in error(
      '--checkpoint', 'x', '--output', str(folder / 'report'))
  assert 'holds no weights' in error(
      '--checkpoint', str(tmp_path), '--output', str(tmp_path / 'a'))
  found = weights.load(folder / 'weights')
  weights.save(tmp_path / 'encoder', found.part('encoder'))
  assert 'has no decoder' in error(
      '--checkpoint', str(tmp_path / 'encoder'), '--output',
      str(tmp_path / 'a'))
  (tmp_path / 'text.wav').write_text('no sound')
  with pytest.raises(SystemExit):
    command.main([
        str(tmp_path / 'text.wav'), '--checkpoint', str(folder / 'weights'),
        '--output', str(tmp_path / 'a')])
  assert 'text.wav cannot be used' in capsys.readouterr().err
  assert not (tmp_path / 'a').exists()


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
  """Chromium without a window, that tells all that it loads."""
  webdriver = pytest.importorskip(
      'selenium.webdriver', reason="needs pip install -e '.[browser]'")
  from selenium.webdriver.chrome import service
  chromium = shutil.which('chromium') or shutil.which('google-chrome')
  driver = shutil.which('chromedriver')
  if not chromium or not driver:
    pytest.skip('needs chromium and chromedriver (Debian: apt-get install '
                'chromium chromium-driver)')
  options = webdriver.ChromeOptions()
  options.binary_location = chromium
  for flag in (
      'headless', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run',
      'disable-background-networking', 'disable-component-update',
      'disable-sync', 'autoplay-policy=no-user-gesture-required',
      'window-size=1100,1400', 'force-prefers-reduced-motion',
      f'user-data-dir={tmp_path_factory.mktemp("profile")}'):
    options.add_argument(f'--{flag}')
  options.set_capability(
      'goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
  started = webdriver.Chrome(
      options=options, service=service.Service(driver))
  yield started
  started.quit()


@pytest.fixture
def opened(browser, folder):
  browser.get_log('browser')
  browser.get_log('performance')
  browser.get((folder / 'report/index.html').as_uri())
  _wait(browser, '''return [...document.querySelectorAll('audio')].every(
      a => a.readyState >= 1)''')
  return browser


def _wait(browser, script, seconds=20):
  end = time.monotonic() + seconds
  while not browser.execute_script(script):
    assert time.monotonic() < end, script
    time.sleep(0.05)


def _find(browser, selector):
  return browser.find_elements('css selector', selector)


def test_browser_loads_the_page_alone_and_whole(opened):
  requests = [json.loads(entry['message'])['message']
              for entry in opened.get_log('performance')]
  # A browser also loads pages of its own.
  addresses = [x['params']['request']['url'] for x in requests
               if x['method'] == 'Network.requestWillBeSent'
               and x['params']['documentURL'].startswith('file:')]
  assert any(x.startswith('file:') for x in addresses)
  assert all(x.startswith(('file:', 'data:')) for x in addresses), addresses
  assert opened.get_log('browser') == []
  assert opened.execute_script('''return [...document.images].every(
      i => i.complete && i.naturalWidth > 0)''')
  durations = opened.execute_script(
      "return [...document.querySelectorAll('audio')].map(a => a.duration)")
  assert len(durations) == 5
  np.testing.assert_allclose(durations, (400 + 63 * 160) / 16000, atol=1e-3)


def test_browser_shows_one_panel_at_a_time_by_mouse_and_keys(opened):
  shown = lambda: [x.get_attribute('id') for x in
                   _find(opened, '[role=tabpanel]') if x.is_displayed()]
  tabs = _find(opened, '[role=tab]')
  assert [x.text for x in tabs] == ['Random patches', 'Gaps of 60 ms']
  assert shown() == ['panel-unstructured']
  tabs[1].click()
  assert shown() == ['panel-gaps-60']
  tabs[1].send_keys('\ue012')  # arrow to the left
  assert shown() == ['panel-unstructured']
  opened.switch_to.active_element.send_keys('\ue014')  # to the right
  assert shown() == ['panel-gaps-60']
  assert [x.get_attribute('aria-selected') for x in tabs] == ['false', 'true']
  assert opened.get_log('browser') == []


def test_browser_plays_one_sound_and_goes_on_with_another_filling(opened):
  playing = '''return [...document.querySelectorAll('audio')].filter(
      a => !a.paused).map(a => a.getAttribute('aria-label'))'''
  pixels = _find(opened, '#original .pixels')[0]
  opened.execute_script('''
      const a = document.querySelector('#original audio');
      a.muted = true; a.loop = true; a.play()''')
  _wait(opened, '''return document.querySelector(
      '#original audio').currentTime > 0.05''')
  assert opened.execute_script(playing) == ['Original']
  assert opened.execute_script('''return getComputedStyle(document
      .querySelector('#original .playhead')).display''') == 'block'
  pixels.click()  # in the middle
  _wait(opened, '''return document.querySelector(
      '#original audio').currentTime > 0.3''')

  figure = "document.querySelector('#unstructured-filled')"
  before = opened.execute_script(f"return {figure}.querySelector('img').src")
  opened.execute_script(f'''
      const a = {figure}.querySelector('audio');
      a.muted = true; a.loop = true; a.currentTime = 0.3; a.play()''')
  _wait(opened, f"return !{figure}.querySelector('audio').seeking")
  assert opened.execute_script(playing) == ['Reconstruction']
  _find(opened, '#panel-unstructured .choices label')[2].click()
  _wait(opened, f'''const a = {figure}.querySelector('audio');
      return a.readyState >= 1 && !a.seeking && !a.paused''')
  assert opened.execute_script(
      f"return {figure}.querySelector('img').src") != before
  assert 'No model' in opened.execute_script(
      f"return {figure}.querySelector('.caption').textContent")
  assert opened.execute_script(playing) == ['Reconstruction']
  assert opened.get_log('browser') == []


@pytest.mark.parametrize('width', [360, 1100])
def test_browser_needs_no_scrolling_sideways(opened, width):
  opened.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', {
      'width': width, 'height': 900, 'deviceScaleFactor': 1,
      'mobile': width < 600})
  assert opened.execute_script(
      'return document.documentElement.scrollWidth') <= width
  opened.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


def test_package_has_the_parts_of_the_page():
  setup = (pathlib.Path(__file__).parents[1] / 'setup.cfg').read_text()
  here = pathlib.Path(command.__file__).parent
  parts = {x.name for x in here.iterdir() if x.suffix not in ('.py', '')}
  listed = re.search(r'audio_mae_jax\.reconstruct = (.+)', setup)[1]
  assert parts == set(listed.split(', '))
