"""launch/gke.sh, launch/xpk.sh and their image, against stand-ins."""

import configparser
import fnmatch
import json
import re
import shlex
import subprocess

from absl import flags
from absl.testing import flagsaver
import launchers
import pytest
import yaml

from audio_mae_jax import main
from audio_mae_jax import storage

ROOT = launchers.ROOT
AWKWARD = (*launchers.AWKWARD, '--config.workdir=gs://bucket/run')
ADDED = [launchers.STOPPED, '--wait_s=1800']


@pytest.fixture
def place(tmp_path):
  return launchers.Place(tmp_path)


GET = ['kubectl', 'get', 'jobset', 'run', '--namespace=team',
       '--ignore-not-found',
       '--output=jsonpath={.kind}:{.status.terminalState}']
DELETE = ['kubectl', 'delete', 'jobset', 'run', '--namespace=team',
          '--cascade=foreground']
CREATE = ['kubectl', 'create', '--namespace=team', '-f', '-']
GPU = '--accelerator=nvidia-l4'


def gke(place, *options):
  return place.run(
      'launch/gke.sh', '--name=run', '--image=registry/image:1',
      '--namespace=team', *options, '--', *AWKWARD)


def manifest_of(place, *options):
  """What kubectl is given, which a dry run prints alike."""
  done = gke(place, *options)
  assert done.returncode == 0, done.stderr
  dry = gke(place, '--dry-run', *options)
  assert place.commands() == [GET, CREATE]
  given = place.calls()[1]['stdin']
  assert dry.stdout.endswith(
      f"{shlex.join(CREATE)} <<'MANIFEST'\n{given}MANIFEST\n")
  manifest = yaml.safe_load(given)
  (job,) = manifest['spec']['replicatedJobs']
  pod = job['template']['spec']['template']['spec']
  return manifest, job, pod


@pytest.mark.parametrize('state, commands, message', [
    ('', [GET, CREATE], ''),
    ('JobSet:Completed', [GET, DELETE, CREATE], ''),
    ('JobSet:Failed', [GET, DELETE, CREATE], ''),
    ('JobSet:', [GET], 'the JobSet run is there and has not ended')])
def test_the_same_command_takes_the_place_of_a_jobset_that_ended(
    place, state, commands, message):
  place.answer('kubectl get', answers=[state])
  done = gke(place, GPU)
  assert done.returncode == bool(message)
  assert message in done.stderr
  assert place.commands() == commands


def test_a_dry_run_prints_what_follows_a_jobset_that_ended(place):
  dry = gke(place, GPU, '--dry-run')
  lines = dry.stdout.splitlines()
  shown = [x for x in lines if x.startswith('kubectl')]
  assert [shlex.split(x.partition(' <<')[0]) for x in shown] == [
      GET, DELETE, CREATE]
  assert not place.calls()


@pytest.mark.parametrize('failing, commands', [
    ('kubectl get', [GET]), ('kubectl delete', [GET, DELETE])])
def test_a_cluster_that_does_not_answer_gets_no_jobset(
    place, failing, commands):
  place.answer('kubectl get', answers=['JobSet:Failed'])
  place.answer(failing, answers=[('', 1)])
  assert gke(place, GPU).returncode == 1
  assert place.commands() == commands


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
      *ADDED, *AWKWARD]
  assert '$$(id)' in container['args'][4]
  assert container['env'] == [{'name': 'A', 'value': '"b" ${CHIPS} $$(B)'}]
  assert container['securityContext']['runAsUser'] == 0


def test_a_jobset_starts_again_unless_it_makes_no_sense(place):
  manifest, job, pod = manifest_of(place, GPU,
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
    assert step == launchers.STEPS.get(code, 'again')
  assert pod['restartPolicy'] == 'Never'
  assert pod['terminationGracePeriodSeconds'] == 60


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
  manifest, *_ = manifest_of(place, GPU)
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
  assert shlex.split(command) == [
      'exec', 'python', '-m', 'audio_mae_jax.main', *ADDED, *AWKWARD]
  assert called == [
      'xpk', 'workload', 'create', '--cluster=c', '--workload=run',
      '--docker-image=image:1', '--tpu-type=v5litepod-16', '--num-slices=1',
      '--max-restarts=20', '--restart-on-exit-codes=2-125',
      '--termination-grace-period-seconds=120', f'--command={command}',
      '--zone=z', '--spot']


@flagsaver.flagsaver
def test_training_takes_what_is_added_and_the_user_wins():
  flags.FLAGS([main.__name__, *ADDED])
  assert (flags.FLAGS.stopped_status, flags.FLAGS.wait_s) == (75, 1800)
  flags.FLAGS([main.__name__, *ADDED, '--wait_s', '60'])
  assert flags.FLAGS.wait_s == 60


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
  init, *command = json.loads(found['ENTRYPOINT'])
  assert command == ['--', 'python', '-m', 'audio_mae_jax.main']
  # As process 1, Python would outlive a SIGTERM that it leaves to the kernel.
  (system,) = [rest for name, rest in instructions() if 'apt-get' in rest]
  assert f'install --yes --no-install-recommends {init} ' in system
  assert found['USER'] == '${RUN_AS}'
  assert 'RUN_AS=1000' in [rest for name, rest in instructions()
                           if name == 'ARG']
