"""A place where the launchers run against stand-ins of the clouds' commands."""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = ('gcloud', 'srun', 'scontrol', 'squeue', 'kubectl', 'xpk', 'git',
            'uv', 'nvidia-smi')

# What the launchers add to the flags that the user gives.
STOPPED = '--stopped_status=75'

# Flags that are hard to quote.
AWKWARD = ('--config=configs/quickstart.py', '--config.patch.stride=(10,10)',
           "--config.name=it's a $HOME $(id) \"x\"", '--config.probe.online=()')

# What follows an exit code; "again" for all that are not here.
STEPS = {0: 'end', 1: 'stop', 126: 'stop', 127: 'stop'}

# The training: what it was called with, then an exit code that the test has
# prepared; or a wait for SIGTERM, which it takes for the end.
TRAINING = '''#!/usr/bin/env bash
trap 'exit 75' TERM
printf '%s\\n' "$$" >> "$STUB_HOME/pids"
code=$("$STUB_HOME/bin/training" "$@")
[[ $code != hang ]] || trap '' TERM
for ((i = 0; i < 1200; i++)); do
  [[ $code = wait || $code = hang ]] || break
  sleep 0.05
done
exit "$code"
'''


class Place:
  """Stand-ins in `path`, with what they were called with."""

  def __init__(self, path, workers=0):
    self.path = path
    (path / 'bin').mkdir()
    source = (pathlib.Path(__file__).parent / 'stub_command.py').read_text()
    for name in (*COMMANDS, 'training'):
      file = path / 'bin' / name
      file.write_text(f'#!{sys.executable} -SE\n{source}')
      file.chmod(0o755)
    python = path / 'bin' / 'python'
    python.write_text(TRAINING)
    python.chmod(0o755)
    for i in range(workers):
      (path / f'worker_{i}').mkdir()
    self.rules = []
    self.answer('training', answers=['0'])
    self.env = {'STUB_HOME': str(path), 'TMPDIR': str(path),
                'PATH': f'{path}/bin:{os.environ["PATH"]}'}

  def answer(self, *words, answers):
    """The next commands with these words print `answers`; the last stays.

    None, instead of one or all, lets them do what they would without any.
    """
    pairs = [(x, 0) if isinstance(x, str) else x for x in answers or ()]
    self.rules = [x for x in self.rules if x['words'] != words]
    if pairs:
      self.rules.insert(0, {'words': words, 'answers': pairs})
    (self.path / 'answers.json').write_text(json.dumps(self.rules))

  def start(self, *argv, **env):
    # A shell cannot trap what is ignored when it starts, as Ctrl-C is in
    # whatever a script has put in the background: these tests, perhaps.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
      signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [str(x) for x in argv], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, **self.env, **env})

  def run(self, *argv, **env):
    process = self.start(*argv, **env)
    try:
      out, err = process.communicate(timeout=60)
    finally:
      process.kill()
    return subprocess.CompletedProcess(argv, process.returncode, out, err)

  def calls(self, *programs):
    """All calls so far, or those of `programs`, in order."""
    path = self.path / 'calls.jsonl'
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    return [x for x in found if not programs or x['argv'][0] in programs]

  def commands(self, *programs):
    return [x['argv'] for x in self.calls(*programs)]


def wait_until(met):
  """Until `met()` is true, which it must be soon."""
  for _ in range(1000):
    if met():
      return
    time.sleep(0.02)
  raise AssertionError('this has not come')


def printed(out):
  """The commands that a dry run printed, comments left out."""
  return [shlex.split(line) for line in out.splitlines()
          if not line.startswith('#')]


def alike(commands):
  """Names of temporary folders differ from run to run."""
  folder = r'[^=\s]+/audio_mae_jax\.\w{10}/'
  return [[re.sub(folder, 'TMP/', word) for word in words]
          for words in commands]
