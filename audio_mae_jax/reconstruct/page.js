'use strict';
// Without this script all panels are shown one below the other.
const tabs = [...document.querySelectorAll('[role=tab]')];

function show(tab, focus) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute('aria-selected', chosen);
    other.tabIndex = chosen ? 0 : -1;
    const panel = document.getElementById(other.getAttribute('aria-controls'));
    panel.hidden = !chosen;
    if (!chosen) panel.querySelectorAll('audio').forEach(a => a.pause());
  }
  if (focus) tab.focus();
}

tabs.forEach((tab, i) => {
  tab.addEventListener('click', () => show(tab));
  tab.addEventListener('keydown', event => {
    const to = {ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0,
                End: tabs.length - 1}[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show(tabs[(to + tabs.length) % tabs.length], true);
  });
});
if (tabs.length) show(tabs[0]);

function follow(figure) {
  const audio = figure.querySelector('audio');
  const pixels = figure.querySelector('.pixels');
  const head = figure.querySelector('.playhead');
  const draw = () => {
    head.style.display = audio.paused && !audio.currentTime ? 'none' : 'block';
    head.style.left = `${100 * audio.currentTime / audio.duration}%`;
    if (!audio.paused) requestAnimationFrame(draw);
  };
  audio.addEventListener('play', () => {
    document.querySelectorAll('audio').forEach(a => a !== audio && a.pause());
    draw();
  });
  for (const name of ['pause', 'seeked', 'ended']) {
    audio.addEventListener(name, draw);
  }
  // The player beside it does the same for the keyboard.
  pixels.addEventListener('click', event => {
    const box = pixels.getBoundingClientRect();
    audio.currentTime = audio.duration * (event.clientX - box.left) / box.width;
    audio.play();
  });
}
document.querySelectorAll('.sounding').forEach(follow);

// What is chosen goes on where the other was, so that ears can compare.
document.querySelectorAll('.choices input').forEach(input => {
  input.addEventListener('change', () => {
    const figure = document.getElementById(input.dataset.figure);
    const audio = figure.querySelector('audio');
    const image = figure.querySelector('.pixels img');
    const at = audio.currentTime, playing = !audio.paused;
    image.src = input.dataset.image;
    image.alt = input.dataset.alt;
    figure.querySelector('.caption').textContent = input.dataset.caption;
    audio.src = input.dataset.audio;
    audio.addEventListener('loadedmetadata', () => {
      audio.currentTime = at;
      if (playing) audio.play();
    }, {once: true});
  });
});
