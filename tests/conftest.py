"""Four virtual CPU devices for every test, set before JAX starts."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ['XLA_FLAGS'] = (
  ' '.join(
    flag
    for flag in os.environ.get('XLA_FLAGS', '').split()
    if 'host_platform_device_count' not in flag
  )
  + ' --xla_force_host_platform_device_count=4'
)

import jax  # noqa: E402

# Several virtual devices on two cores: queued steps would wait for each other
# inside a collective and XLA aborts after 40 s.
jax.config.update('jax_cpu_enable_async_dispatch', False)
