"""What a computation knows of the devices that it is compiled for: as much as
its caller makes known (`sharding.known`)."""

import jax


def platform() -> str | None:
  """Of the devices, 'cpu', 'gpu' or 'tpu'; None if the caller names none."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device and device.platform


def run_kernels() -> bool:
  """Whether the devices are GPUs that our kernels and cuDNN's fused attention
  are for: NVIDIA's of compute capability 8.0 (A100) or later."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  if platform() != 'gpu' or not device.device_kind.startswith('NVIDIA'):
    return False
  here = [x for x in jax.local_devices() if x.device_kind == device.device_kind]
  # None are here if the program is compiled for another machine.
  return all(float(x.compute_capability) >= 8 for x in here)


def split(call, clips, whole):
  """`call(*clips, *whole)` with the clips of each device on it.

  For what the partitioner cannot split: kernels, Fourier transforms. Results
  are split as `clips` are, over their first axis; where that does not divide,
  the partitioner gathers.

  Args:
    call: function of arrays, or None in their place.
    clips: arrays [B, ...], or None.
    whole: arrays that each device has all of, or None.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or clips[0].shape[0] % mesh.size:
    return call(*clips, *whole)
  parts, all_of_it = (jax.sharding.PartitionSpec(x)
                      for x in (mesh.axis_names, None))
  specs = (parts,) * len(clips) + (all_of_it,) * len(whole)
  return jax.shard_map(
      call, mesh=mesh, check_vma=False, in_specs=specs, out_specs=parts)(
          *clips, *whole)
