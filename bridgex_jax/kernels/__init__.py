"""The kernels under one name: `bridgex_jax.kernels.hsic`.

Installed, setup.cfg maps the package here. In a checkout the folder `kernels` lies beside
`bridgex_jax`, without an `__init__.py` (transformers imports a package of that name), and is
appended to the search path.
"""

from pathlib import Path

_checkout = Path(__file__).resolve().parents[2] / "kernels"
if (_checkout / "hsic" / "__init__.py").is_file() and str(_checkout) not in __path__:
    __path__.append(str(_checkout))
