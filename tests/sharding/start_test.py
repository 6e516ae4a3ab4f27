"""Which of several processes this is: read off each launcher's environment."""

import pytest

from yi_jax.sharding import start

_SLURM = {
  'SLURM_JOB_ID': '4097',
  'SLURM_STEP_NUM_TASKS': '3',
  'SLURM_PROCID': '2',
  'SLURM_STEP_NODELIST': 'node[003-005]',
}
_TPU = {'TPU_WORKER_HOSTNAMES': 't0,t1,t2', 'TPU_WORKER_ID': '1'}
_SLICES = {
  'MEGASCALE_NUM_SLICES': '2',
  'MEGASCALE_SLICE_ID': '1',
  'MEGASCALE_COORDINATOR_ADDRESS': 'first:8080',
}
_SKY = {'SKYPILOT_NODE_IPS': '10.0.0.1\n10.0.0.2', 'SKYPILOT_NODE_RANK': '1'}
_JOBSET = {
  'JOBSET_NAME': 'yi',
  'REPLICATED_JOB_NAME': 'workers',
  'JOB_COMPLETION_INDEX': '3',
  'JAX_NUM_PROCESSES': '4',
}
_HAND = {
  'JAX_COORDINATOR_ADDRESS': 'a:1',
  'JAX_NUM_PROCESSES': '2',
  'JAX_PROCESS_ID': '0',
}


@pytest.mark.parametrize(
  ('environment', 'want'),
  [
    ({}, None),
    (_HAND, ('by hand', 'a:1', 2, 0)),
    ({'YI_DISTRIBUTED': '1'}, ('JAX', '', 0, 0)),
    ({'YI_DISTRIBUTED': '0'}, None),
    (_SLURM, ('Slurm', 'node003:61441', 3, 2)),
    (
      {**_SLURM, 'SLURM_STEP_NODELIST': 'a[1,7-9],b', 'SLURM_PROCID': '0'},
      ('Slurm', 'a1:61441', 3, 0),
    ),
    (
      {**_SLURM, 'SLURM_STEP_NODELIST': 'gpu-1,gpu-2'},
      ('Slurm', 'gpu-1:61441', 3, 2),
    ),
    ({**_SLURM, 'SLURM_STEP_NUM_TASKS': '1', 'SLURM_PROCID': '0'}, None),
    # The batch script itself, which starts the tasks.
    ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '2', 'SLURM_PROCID': '0'}, None),
    (_TPU, ('TPU', 't0:8482', 3, 1)),
    ({**_TPU, **_SLICES}, ('TPU', 'first:8482', 6, 4)),
    ({'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_WORKER_ID': '0'}, None),
    (_SKY, ('SkyPilot', '10.0.0.1:8482', 2, 1)),
    ({'SKYPILOT_NODE_IPS': '10.0.0.1', 'SKYPILOT_NODE_RANK': '0'}, None),
    (_JOBSET, ('JobSet', 'yi-workers-0-0.yi:8482', 4, 3)),
    (
      {**_JOBSET, 'JAX_COORDINATOR_PORT': '99'},
      ('JobSet', 'yi-workers-0-0.yi:99', 4, 3),
    ),
    # By hand goes before what the launcher says.
    ({**_JOBSET, **_SLURM, **_HAND}, ('by hand', 'a:1', 2, 0)),
    # A slice inside a JobSet or a SkyPilot task: its order is the TPU's.
    ({**_JOBSET, **_SKY, **_TPU}, ('TPU', 't0:8482', 3, 1)),
  ],
)
def test_the_place_is_read_off_the_environment(environment, want):
  place = start.detect(environment)
  assert place == (start.Place(*want) if want else None)


@pytest.mark.parametrize(
  ('environment', 'message'),
  [
    ({'JAX_PROCESS_ID': '0'}, 'JAX_PROCESS_ID is set, but .* needs all of'),
    ({**_HAND, 'JAX_COORDINATOR_ADDRESS': 'host'}, 'not a host:port'),
    ({**_HAND, 'JAX_NUM_PROCESSES': 'two'}, 'JAX_NUM_PROCESSES=two'),
    ({**_HAND, 'JAX_PROCESS_ID': '2'}, 'JAX_PROCESS_ID=2'),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, 'TPU_WORKER_ID is not'),
    ({**_TPU, 'MEGASCALE_NUM_SLICES': '2'}, 'MEGASCALE_COORDINATOR_ADDRESS'),
    ({'SKYPILOT_NODE_IPS': 'a\nb'}, 'SKYPILOT_NODE_RANK is not'),
    ({'JOBSET_NAME': 'yi'}, 'not REPLICATED_JOB_NAME, JOB_COMPLETION_INDEX'),
  ],
)
def test_half_an_environment_is_refused(environment, message):
  with pytest.raises(ValueError, match=message):
    start.detect(environment)


def test_start_reads_the_environment_of_the_process(monkeypatch):
  monkeypatch.setenv('JAX_PROCESS_ID', '0')
  with pytest.raises(ValueError, match='needs all of'):
    start.start()
  for name, value in _HAND.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setenv('YI_JOIN_SECONDS', 'soon')
  with pytest.raises(ValueError, match="YI_JOIN_SECONDS .* not 'soon'"):
    start.start()


def test_versions_name_the_libraries_and_the_files_of_the_package():
  found = start.versions()
  assert {'python', 'jax', 'jaxlib', 'orbax-checkpoint'} <= found.keys()
  assert found['yi_jax'].startswith('files ')
  assert found == start.versions()
