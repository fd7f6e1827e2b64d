"""`python -m bridgex_jax.cli`, the same as `bridgex`."""

from bridgex_jax.cli.main import main

main()
