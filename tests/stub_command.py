"""Stands for gcloud, srun and others in the tests of the launchers.

Installed under their names, it writes down what it was called with, and
answers what the test has prepared, or does what the command would do with
workers that are folders of this machine.
"""

import fcntl
import json
import os
import sys

HOME = os.environ['STUB_HOME']


def record(argv, **more):
  """One line of calls.jsonl; processes write at the same time."""
  line = json.dumps({'argv': argv, **more}) + '\n'
  with open(f'{HOME}/calls.jsonl', 'a') as file:
    file.write(line)


def answer(argv):
  """The next of the answers prepared for a command like this, or None."""
  with open(f'{HOME}/answers.json', 'r+') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    rules = json.load(file)
    for rule in rules:
      if all(word in ' '.join(argv) for word in rule['words']):
        found = rule['answers'][0]
        if len(rule['answers']) > 1:
          del rule['answers'][0]
          file.seek(0)
          json.dump(rules, file)
          file.truncate()
        return found
  return None


def workers(argv):
  which = next(x for x in argv if x.startswith('--worker='))[9:]
  names = sorted(x for x in os.listdir(HOME) if x.startswith('worker_'))
  return [f'{HOME}/{name}' for name in names if which in ('all', name[7:])]


def wait(commands):
  """Exit codes of (argv, folder, variables), run all at once."""
  pids = []
  for argv, folder, variables in commands:
    pid = os.fork()
    if not pid:
      os.chdir(folder)
      os.execvpe(argv[0], argv, {**os.environ, **variables})
    pids.append(pid)
  return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def ssh(argv):
  """As gcloud does: everywhere at once, and the first failure is the status."""
  command = next(x for x in argv if x.startswith('--command='))[10:]
  codes = wait((['bash', '-c', command], home, {'HOME': home})
               for home in workers(argv))
  return next((code for code in codes if code), 0)


def scp(argv):
  source, target = argv[5:7]
  wait((['cp', source, f'{home}/{target.partition(":")[2]}'], home, {})
       for home in workers(argv))
  return 0


def srun(argv):
  """Runs the tasks; the status is the highest of theirs."""
  first = next(i for i, x in enumerate(argv) if i and not x.startswith('--'))
  return max(wait((argv[first:], '.', {'SLURM_PROCID': str(i)})
                  for i in range(int(os.environ['SLURM_NTASKS']))))


def git(argv):
  """The launchers and recipes as they are now; the whole takes too long."""
  if 'archive' not in argv:
    return 0
  output = next(x for x in argv if x.startswith('--output='))[9:]
  return wait([(['tar', '-czf', output, 'launch', 'configs'], argv[2], {})])[0]


def uv(argv):
  """Puts a stand-in for the training where the interpreter would be."""
  if argv[1] == 'venv':
    os.makedirs(f'{argv[-1]}/bin')
    os.symlink(f'{HOME}/bin/python', f'{argv[-1]}/bin/python')
  return 0


def main():
  argv = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
  manifest = sys.stdin.read() if argv[0] == 'kubectl' else None
  seen = {name: os.environ[name]
          for name in ('CUDA_VISIBLE_DEVICES', 'XLA_PYTHON_CLIENT_MEM_FRACTION',
                       'SLURM_PROCID', 'AUDIO_MAE_DATA') if name in os.environ}
  record(argv, stdin=manifest, env=seen, cwd=os.getcwd())
  prepared = answer(argv)
  if prepared:
    print(prepared[0], end='')
    return prepared[1]
  action = {'git': git, 'uv': uv, 'srun': srun}.get(argv[0])
  if argv[:4] == ['gcloud', 'compute', 'tpus', 'tpu-vm']:
    action = {'ssh': ssh, 'scp': scp}.get(argv[4])
  return action(argv) if action else 0


if __name__ == '__main__':
  sys.exit(main())
