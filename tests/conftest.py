"""Two host devices for every test, and JAX as strict as it goes."""

import os
import tempfile

import jax

from evometa.machine import spare_threads

os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="evometa-state-")  # which runs are whose: this session's alone
spare_threads()  # before JAX starts its backend: whichever test comes first, nested searches have threads to spare
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
