"""Eight CPU devices for every test, set before jax is imported.

Those of a GPU (`-m gpu`) want JAX_PLATFORMS=cuda,cpu.
"""

import gc
import os

import pytest

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# XLA sizes its thread pool by cores; with fewer threads than devices, queued
# collectives wait for each other for good.
os.environ.setdefault('NPROC', '16')
_flags = [os.environ.get('XLA_FLAGS', ''),
          '--xla_force_host_platform_device_count=8']
# Compiling is most of the time that tests take, and takes a third as long
# without LLVM's optimisation, fusions by way of MLIR, and more parts of a
# program than there are cores; what is computed is the same.
if os.environ['JAX_PLATFORMS'] == 'cpu':
  os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
  _flags += ['--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters',
             '--xla_cpu_parallel_codegen_split_count=1']
os.environ['XLA_FLAGS'] = ' '.join(_flags).strip()
# Tracing makes many objects and little garbage: looking for it as often as
# Python does by itself takes a quarter of the time.
gc.set_threshold(100_000, 50, 100)


def pytest_runtest_setup(item):
  if item.get_closest_marker('gpu'):
    import jax
    if jax.default_backend() != 'gpu':
      pytest.skip('no GPU, or JAX_PLATFORMS does not say cuda,cpu')


@pytest.fixture(scope='module')
def compile_once(tmp_path_factory):
  """Runs that differ in nothing that a step is traced from share its program,
  in a module; and models of one size what of theirs is compiled alike, also
  between modules. Tracing and compiling take longest."""
  import jax
  import shared_steps
  place = tmp_path_factory.getbasetemp() / 'programs'
  jax.config.update('jax_compilation_cache_dir', str(place))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  with shared_steps.built_once():
    yield
  jax.config.update('jax_compilation_cache_dir', None)


@pytest.fixture(scope='session')
def cache(pytestconfig):
  """Compiled programs of the processes that tests start; kept from one run of
  the tests to the next, as those of a run are from one start to the next."""
  return pytestconfig.cache.mkdir('programs')


@pytest.fixture(scope='session')
def s3_store():
  import stores
  with stores.s3():
    yield


@pytest.fixture(scope='session')
def gs_store():
  import stores
  with stores.gs():
    yield


@pytest.fixture(params=['s3', pytest.param('gs', marks=pytest.mark.slow)])
def bucket(request):
  """The address of a new bucket, of each of the stores."""
  import stores
  request.getfixturevalue(f'{request.param}_store')
  return stores.new_bucket(request.param)
