"""launch/tpu_vm.sh against a stand-in of gcloud, whose workers are folders."""

import os
import pathlib
import re
import shutil
import signal

import launchers
import pytest

SCRIPT = 'launch/tpu_vm.sh'
NAMED = ('--name=tpu', '--zone=us-west4-a', '--project=mine', '--poll=0')
TYPE = '--accelerator-type=v5litepod-16'
AWKWARD = ("--config.patch.stride=(10,10)", "--config.name=it's a $HOME \"x\"",
           '--config.probe.online=()')
TRAIN = ('--', '--config=configs/pretrain_as2m.py',
         '--config.workdir=gs://bucket/run', *AWKWARD)
PLACE = ['--zone=us-west4-a', '--project=mine', '--quiet']
# What the stand-in of the interpreter sees of TRAIN.
SEEN = ['training', '-m', 'audio_mae_jax.main', launchers.STOPPED, *TRAIN[1:]]
LIST_VM = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'list',
           '--filter=name~"/nodes/tpu$"', '--format=value(state)', *PLACE]
LIST_QUEUE = ['gcloud', 'compute', 'tpus', 'queued-resources', 'list',
              '--filter=name~"/queuedResources/tpu$"',
              '--format=value(state.state)', *PLACE]


@pytest.fixture
def place(tmp_path):
  return launchers.Place(tmp_path, workers=2)


@pytest.fixture
def installed(place):
  """A TPU VM that is there, with the launchers on its two workers."""
  place.answer('tpu-vm list', answers=['READY\n'])
  place.answer('worker.sh install', answers=[''])
  for worker in place.path.glob('worker_*'):
    checkout = worker / 'audio_mae_jax'
    shutil.copytree(launchers.ROOT / 'launch', checkout / 'launch')
    (checkout / '.venv/bin').mkdir(parents=True)
    (checkout / '.venv/bin/python').symlink_to(place.path / 'bin/python')
  return place


def verbs(place):
  """What was asked of gcloud, without the looks at states."""
  found = []
  for argv in place.commands('gcloud'):
    verb = argv[4]
    if verb == 'ssh':
      command = argv[-4].removeprefix('--command=')
      verb = next(x for x in ('install', 'start', 'status', 'end', 'stop',
                              'tail', 'log') if x in command)
    found.append(verb)
  return [x for x in found if x not in ('list', 'status')]


def test_the_commands_of_a_new_tpu_vm_word_by_word(place):
  out = place.run(SCRIPT, 'all', *NAMED, TYPE, '--spot', '--dry-run', *TRAIN)
  assert out.returncode == 0, out.stderr
  vm = ['gcloud', 'compute', 'tpus', 'tpu-vm']
  commands = launchers.alike(launchers.printed(out.stdout))
  assert commands[:3] == [
      LIST_VM,
      [*vm, 'create', 'tpu', '--version=v2-alpha-tpuv5-lite', TYPE, '--spot',
       *PLACE],
      LIST_VM]
  assert commands[3] == [
      'git', '-C', str(launchers.ROOT), 'archive', '--format=tar.gz',
      '--output=TMP/audio_mae_jax.tar.gz', 'HEAD']
  assert commands[4] == [*vm, 'scp', 'TMP/audio_mae_jax.tar.gz',
                         'tpu:audio_mae_jax.tar.gz', '--worker=all', *PLACE]
  remote = [x.removeprefix('--command=') for words in commands[5:]
            for x in words if x.startswith('--command=')]
  assert remote == [
      'set -e; if [ -e audio_mae_jax ] && [ ! -e audio_mae_jax.run ]; then '
      "echo 'error: audio_mae_jax is not from tpu_vm.sh; give --dir=OTHER.' "
      '>&2; exit 1; fi; mkdir -p audio_mae_jax.run; '
      'if [ -e audio_mae_jax/launch/worker.sh ]; then '
      'audio_mae_jax/launch/worker.sh idle; fi; rm -rf audio_mae_jax; '
      'mkdir audio_mae_jax; tar -xzf audio_mae_jax.tar.gz -C audio_mae_jax; '
      'audio_mae_jax/launch/worker.sh install 3.11 tpu,gcs; ',
      'audio_mae_jax/launch/worker.sh start --stopped_status=75 '
      '--config=configs/pretrain_as2m.py --config.workdir=gs://bucket/run '
      "'--config.patch.stride=(10,10)' '--config.name=it'\\''s a $HOME "
      "\"x\"' '--config.probe.online=()'",
      'audio_mae_jax/launch/worker.sh status || echo status=none']
  assert not place.calls()


@pytest.mark.parametrize('options, assumed, queue, vm', [
    ([], '', [], ['', 'READY\n']),
    ([], 'READY', [], ['READY\n']),
    ([], 'PREEMPTED', [], ['PREEMPTED\n', '', 'READY\n']),
    (['--queued'], '', ['', 'ACTIVE\n'], ['READY\n']),
    (['--queued'], 'SUSPENDED', ['SUSPENDED\n', '', 'ACTIVE\n'],
     ['READY\n'])])
def test_a_dry_run_prints_what_is_then_called(
    place, options, assumed, queue, vm):
  options = [*NAMED, TYPE, '--spot', '--connect-flag=--internal-ip',
             '--create-flag=--network=net', *options]
  place.answer('tpu-vm list', answers=vm)
  place.answer('queued-resources list', answers=queue or [''])
  place.answer('tpu-vm scp', answers=[''])
  place.answer('tpu-vm ssh', answers=[''])
  place.answer('worker.sh status', answers=['status=0\nstatus=0\n'])
  dry = place.run(SCRIPT, 'all', *options, '--dry-run', f'--assume={assumed}',
                  *TRAIN)
  assert dry.returncode == 0, dry.stderr
  assert not place.calls()
  done = place.run(SCRIPT, 'all', *options, *TRAIN)
  assert done.returncode == 0, done.stderr
  wanted = [x for x in launchers.printed(dry.stdout) if x[0] == 'gcloud']
  called = place.commands('gcloud')
  assert launchers.alike(called) == launchers.alike(wanted)
  created = [x for x in called if 'create' in x]
  kind = 'queued-resources' if queue else 'tpu-vm'
  assert [x[3] for x in created] == [kind] * (assumed != 'READY')
  assert all('--network=net' in x for x in created)
  assert all(('--internal-ip' in x) == (x[4] in ('ssh', 'scp'))
             for x in called)


def test_the_checkout_reaches_all_workers_and_trains_with_these_flags(place):
  place.answer('tpu-vm list', answers=['READY\n'])
  done = place.run(SCRIPT, 'all', *NAMED, TYPE, '--env=AUDIO_MAE_DATA=/a b',
                   '--extras=tpu,tfds', *TRAIN)
  assert done.returncode == 0, done.stderr
  calls = place.calls('training')
  assert [x['argv'] for x in calls] == [SEEN, SEEN]
  assert {x['env']['AUDIO_MAE_DATA'] for x in calls} == {'/a b'}
  checkouts = {str(place.path / f'worker_{i}' / 'audio_mae_jax')
               for i in range(2)}
  assert {x['cwd'] for x in calls} == checkouts
  for checkout in checkouts:
    assert (pathlib.Path(checkout) / 'configs/pretrain_as2m.py').exists()
  uv = place.commands('uv')
  assert ['uv', 'venv', '--quiet', '--python', '3.11', '.venv'] in uv
  assert ['uv', 'pip', 'install', '--quiet', '--python', '.venv', '--editable',
          '.[tpu,tfds]'] in uv
  assert len(uv) == 4
  assert verbs(place) == ['scp', 'install', 'start']  # what is there is taken


def test_a_repository_instead_of_the_checkout(place):
  out = place.run(SCRIPT, 'install', *NAMED, '--dry-run', '--dir=my dir',
                  '--source=https://example.org/repo.git', '--ref=v1')
  (command,) = launchers.printed(out.stdout)
  assert ("git clone --quiet --depth=1 --branch=v1 "
          "https://example.org/repo.git 'my dir'; "
          "'my dir/launch/worker.sh' install") in command[7]


def test_a_folder_of_somebody_else_stays(place):
  mine = place.path / 'worker_1' / 'audio_mae_jax' / 'results.csv'
  mine.parent.mkdir()
  mine.write_text('mine')
  done = place.run(SCRIPT, 'install', *NAMED)
  assert done.returncode == 1
  assert 'audio_mae_jax is not from tpu_vm.sh; give --dir=OTHER' in done.stderr
  assert mine.read_text() == 'mine'


def test_an_installation_that_was_cut_short_can_be_repeated(place):
  place.answer('tpu-vm scp', answers=[''])  # nothing arrives
  assert place.run(SCRIPT, 'install', *NAMED, '--dir=a b').returncode
  assert (place.path / 'worker_0' / 'a b').exists()
  place.answer('tpu-vm scp', answers=None)
  done = place.run(SCRIPT, 'install', *NAMED, '--dir=a b')
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('queued, lost', [
    ('', 'PREEMPTED'), ('', 'TERMINATED'), ('--queued', 'SUSPENDED')])
def test_after_a_preemption_all_is_made_again(installed, queued, lost):
  place = installed
  kind = 'queued-resources list' if queued else 'tpu-vm list'
  ready = 'ACTIVE\n' if queued else 'READY\n'
  # watch, up, up after deleting, up after creating, watch
  place.answer(kind, answers=[f'{lost}\n', f'{lost}\n', '', ready])
  options = (queued,) if queued else ()
  done = place.run(SCRIPT, 'watch', *NAMED, TYPE, *options, *TRAIN)
  assert done.returncode == 0, done.stderr
  assert verbs(place) == ['delete', 'create', 'scp', 'install', 'start']
  delete = next(x for x in place.commands('gcloud') if x[4] == 'delete')
  assert ('--force' in delete) == bool(queued)
  assert f'tpu is {lost}; resuming (1 of 20)' in done.stderr


def test_a_loss_counts_once_however_long_there_is_no_capacity(installed):
  place = installed
  failed = 3
  # watch, up, up after deleting; then watch and up, until there is capacity
  place.answer('tpu-vm list', answers=[
      'PREEMPTED\n', 'PREEMPTED\n', '', *['', ''] * failed, 'READY\n'])
  place.answer('tpu-vm create', answers=[('', 1)] * failed + [('', 0)])
  done = place.run(SCRIPT, 'watch', *NAMED, TYPE, '--max-resumes=1', *TRAIN)
  assert done.returncode == 0, done.stderr
  assert verbs(place) == [
      'delete', *['create'] * failed, 'create', 'scp', 'install', 'start']


def test_each_loss_and_each_request_that_fails_counts(place):
  place.answer('tpu-vm list', answers=['READY\n'])
  place.answer('tpu-vm scp', answers=[('', 255)])
  # Lost once more when it has just come back.
  place.answer('queued-resources list', answers=[
      *['SUSPENDED\n', 'SUSPENDED\n', '', 'ACTIVE\n'] * 2,
      *['FAILED\n', 'FAILED\n', '', 'FAILED\n'] * 2, 'FAILED\n'])
  done = place.run(SCRIPT, 'watch', *NAMED, TYPE, '--queued',
                   '--max-resumes=4', *TRAIN)
  assert done.returncode == 1
  assert re.findall(r'tpu is (\w+)[;,]', done.stderr) == [
      'SUSPENDED', 'SUSPENDED', 'FAILED', 'FAILED', 'FAILED']
  assert 'resumed 4 times already (--max-resumes=4)' in done.stderr


def test_an_installation_that_fails_on_a_new_vm_is_repeated(place):
  place.answer('tpu-vm list', answers=[
      'PREEMPTED\n', 'PREEMPTED\n', '', 'READY\n'])
  # A VM that has just come up refuses ssh.
  place.answer('tpu-vm scp', answers=[('', 255), None])
  place.answer('worker.sh status', answers=[('', 255), None])
  done = place.run(SCRIPT, 'watch', *NAMED, TYPE, *TRAIN)
  assert done.returncode == 0, done.stderr
  assert verbs(place) == [
      'delete', 'create', 'scp', 'scp', 'install', 'start']
  assert 'ended with none, none; resuming (2 of 20)' in done.stderr
  assert [x['argv'] for x in place.calls('training')] == [SEEN, SEEN]


@pytest.mark.parametrize('heard, most, actions, status', [
    # The others have ended, or nobody answers: it is installed and started.
    ('status=69\n', 20, ['scp', 'install', 'start'], 0),
    ('', 20, ['scp', 'install', 'start'], 0),
    ('', 0, ['delete'], 1),
    # One is enough to stop.
    ('status=1\n', 20, ['tail', 'delete'], 1),
    ('status=stopped\n', 20, ['delete'], 75),
    # A run that loses a worker ends: this one has not.
    ('status=running\n', 0, [], 0)])
def test_a_worker_that_does_not_answer_is_not_asked_for_ever(
    installed, heard, most, actions, status):
  place = installed
  place.answer('worker.sh status', answers=[
      *[(heard, 255)] * 10, ('status=0\nstatus=0\n', 0)])
  down = ['--down-after'] * bool(status)
  done = place.run(SCRIPT, 'watch', *NAMED, TYPE, f'--max-resumes={most}',
                   *down, *TRAIN)
  assert done.returncode == status, done.stderr
  assert verbs(place) == actions
  told = 'a worker of a TPU VM that is READY does not answer'
  assert (told in done.stderr) == (heard in ('', 'status=69\n'))


@pytest.mark.parametrize('codes, starts, status', [
    (['0'], 1, 0), (['75', '75', '0'], 2, 0), (['0', '137', '0'], 2, 0),
    (['1'], 1, 1), (['134', '1'], 1, 1), (['127'], 1, 1)])
def test_what_follows_the_exit_codes(installed, codes, starts, status):
  place = installed
  place.answer('training', answers=codes)
  assert place.run(SCRIPT, 'run', *NAMED, *TRAIN).returncode == 0
  done = place.run(SCRIPT, 'watch', *NAMED, TYPE, *TRAIN)
  assert done.returncode == status, done.stderr
  assert verbs(place).count('start') == starts
  assert ('tail' in verbs(place)) == (status == 1)


def test_a_crash_is_tried_again_only_so_often(installed):
  place = installed
  place.answer('training', answers=['134'])
  assert place.run(SCRIPT, 'run', *NAMED, *TRAIN).returncode == 0
  done = place.run(SCRIPT, 'watch', *NAMED, TYPE, '--max-resumes=2',
                   '--down-after', *TRAIN)
  assert done.returncode == 1
  assert verbs(place) == ['start'] * 3 + ['delete']
  assert 'resumed 2 times already (--max-resumes=2)' in done.stderr


@pytest.mark.parametrize('queued', [[], ['--queued']])
def test_silence_of_the_cloud_is_no_preemption(installed, queued):
  place = installed
  silent = [('', 1), ('', 1), ('ACTIVE\n' if queued else 'READY\n', 0)]
  place.answer('queued-resources list' if queued else 'tpu-vm list',
               answers=silent)
  place.answer('worker.sh status', answers=[('', 255), ('status=0\n', 0)])
  done = place.run(SCRIPT, 'watch', *NAMED, TYPE, *queued, *TRAIN)
  assert done.returncode == 0, done.stderr
  assert not verbs(place)


@pytest.mark.parametrize('command, answers, message', [
    ('watch', [''], 'tpu was deleted'),
    ('up', ['HIDDEN\n'], 'tpu is HIDDEN, which needs you'),
    ('up', ['', ''], 'tpu was created and is gone')])
def test_states_that_need_the_user(place, command, answers, message):
  place.answer('tpu-vm list', answers=answers)
  done = place.run(SCRIPT, command, *NAMED, TYPE, *TRAIN)
  assert done.returncode == 1
  assert message in done.stderr


def test_a_request_that_fails_is_not_repeated(place):
  place.answer('queued-resources list', answers=['FAILED\n', '', 'FAILED\n'])
  done = place.run(SCRIPT, 'up', *NAMED, TYPE, '--queued')
  assert done.returncode == 1
  assert 'queued-resources describe tpu' in done.stderr
  assert verbs(place) == ['delete', 'create']


def test_up_waits_for_the_queue_and_for_the_vm(place):
  place.answer('queued-resources list', answers=[
      '', 'WAITING_FOR_RESOURCES\n', 'PROVISIONING\n', 'ACTIVE\n'])
  place.answer('tpu-vm list', answers=['CREATING\n', 'READY\n'])
  done = place.run(SCRIPT, 'up', *NAMED, TYPE, '--queued')
  assert done.returncode == 0, done.stderr
  assert verbs(place) == ['create']
  assert place.commands('gcloud')[-2:] == [LIST_QUEUE, LIST_VM]


def test_workers_that_started_end_if_one_did_not(installed):
  place = installed
  place.answer('training', answers=['wait'])
  (place.path / 'worker_1/audio_mae_jax/launch/worker.sh').unlink()
  done = place.run(SCRIPT, 'run', *NAMED, *TRAIN)
  assert done.returncode == 1
  assert 'Not all workers started' in done.stderr
  assert verbs(place)[-2:] == ['start', 'end']
  assert (place.path / 'worker_0/audio_mae_jax.run/exit_code'
          ).read_text() == '75\n'


def test_stop_saves_and_ends_watch(installed):
  place = installed
  place.answer('training', answers=['wait'])
  assert place.run(SCRIPT, 'run', *NAMED, *TRAIN).returncode == 0
  again = place.run(SCRIPT, 'run', *NAMED, *TRAIN)
  assert again.stdout == 'It runs already.\n' * 2
  place.answer('worker.sh install', answers=None)
  busy = place.run(SCRIPT, 'install', *NAMED)
  assert busy.returncode == 1
  assert 'training runs here: "watch" waits for it' in busy.stderr
  watch = place.start(SCRIPT, 'watch', *NAMED, TYPE, '--down-after', *TRAIN)
  looks = lambda: sum('status' in x[-4] for x in place.commands('gcloud'))
  launchers.wait_until(lambda: looks() > 2)
  assert place.run(SCRIPT, 'stop', *NAMED).returncode == 0
  _, err = watch.communicate(timeout=30)
  assert watch.returncode == 75
  assert 'The training was stopped' in err
  assert 'resuming' not in err  # what runs is left alone
  assert len(place.calls('training')) == 2
  assert verbs(place)[-1] == 'delete'
  place.answer('training', answers=['0'])
  assert place.run(SCRIPT, 'run', *NAMED, *TRAIN).returncode == 0
  assert place.run(SCRIPT, 'watch', *NAMED, TYPE, *TRAIN).returncode == 0


def test_a_worker_that_vanished_is_lost_and_started_again(installed):
  place = installed
  place.answer('training', answers=['0', '0', 'wait', '0'])
  for command in ('run', 'watch', 'run'):
    assert place.run(SCRIPT, command, *NAMED, TYPE, *TRAIN).returncode == 0
  # What a reboot does: nobody is left to write an exit code.
  folders = sorted(place.path.glob('worker_*/audio_mae_jax.run'))
  ended = lambda: [(x / 'exit_code').exists() for x in folders]
  launchers.wait_until(lambda: sum(ended()) == 1)
  waits = (folders[ended().index(False)] / 'pid').read_text().strip()
  status = pathlib.Path(f'/proc/{waits}/status').read_text()
  supervisor = re.search(r'^PPid:\s+(\d+)', status, re.MULTILINE)[1]
  for pid in (supervisor, waits):
    os.kill(int(pid), signal.SIGKILL)
  out = place.run(SCRIPT, 'status', *NAMED)
  assert sorted(out.stdout.split()) == ['READY', 'status=0', 'status=lost']
  done = place.run(SCRIPT, 'watch', *NAMED, TYPE, *TRAIN)
  assert done.returncode == 0, done.stderr
  assert 'ended with' in done.stderr and 'lost' in done.stderr


@pytest.mark.parametrize('argv, message', [
    (('up', '--name=tpu', '--zone=z'), '--accelerator-type=VALUE is missing'),
    (('up', '--zone=z'), '--name=VALUE is missing'),
    (('run', '--name=tpu'), '--zone=VALUE is missing'),
    (('watch', *NAMED, *TRAIN), '--accelerator-type=VALUE is missing'),
    (('watch', *NAMED, TYPE), 'the recipe is missing'),
    (('all', *NAMED, TYPE, '--', '--config=c.py'),
     'is on the disk of each worker'),
    (('run', *NAMED), 'the recipe is missing'),
    (('run', *NAMED, '--', '--config=c.py'), 'is on the disk of each worker'),
    (('run', *NAMED, '--', '--config=c.py', '--config.workdir=runs/x'),
     "--config.workdir='runs/x' is on the disk of each worker"),
    (('install', *NAMED, '--dir=..'), "--dir='..' must be the name of"),
    (('install', *NAMED, '--dir=/'), "--dir='/' must be the name of"),
    (('install', *NAMED, '--dir='), "--dir='' must be the name of"),
    (('go', *NAMED), "there is no command 'go'"),
    (('up', '--name=T_1', '--zone=z', TYPE), "--name='T_1' must be lower-case"),
    (('up', *NAMED, '--poll=soon', TYPE), "--poll must be a whole number"),
    (('up', *NAMED, '--accelerator-type=v9-8'), 'no runtime version is known'),
    (('up', *NAMED, '--spot=yes'), 'there is no option --spot=VALUE'),
    (('up', *NAMED, '--zone'), 'there is no option --zone;'),
    (('up', *NAMED, 'x'), "unexpected argument 'x'")])
def test_mistakes_are_told_before_anything_is_called(place, argv, message):
  done = place.run(SCRIPT, *argv)
  assert done.returncode == 1
  assert message in done.stderr
  assert all(x[4] == 'list' for x in place.commands('gcloud'))
