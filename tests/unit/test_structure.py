"""The house rules that a reader relies on: floors, packages, lazy names, no import of torch."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "bridgex_jax"
FLOORS = (
    {"axes", "errors"},
    {"cluster", "kernels", "languages", "runtime", "store"},
    {"data", "models", "neurons", "report"},
    {"activations", "bridge", "icl", "train"},
    {"pipelines"},
    {"cli"},
)
FORBIDDEN = {("neurons", "models"), ("bridge", "models"), ("store", "models"), ("report", "models")}


def floor(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def imports():
    """(room, file, imported dotted name) of every import in the package and the kernels."""
    files = [(path.relative_to(PACKAGE).parts[0], path) for path in PACKAGE.rglob("*.py")]
    files += [("kernels", path) for path in (ROOT / "kernels").rglob("*.py")]
    for room, path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module] + [f"{node.module}.{a.name}" for a in node.names]
            for name in names:
                yield room.removesuffix(".py"), path, name


def test_no_import_runs_up_the_floors():
    bad = []
    for room, path, name in imports():
        parts = name.split(".")
        if parts[0] != "bridgex_jax" or len(parts) < 2 or room in ("__init__", "builtin"):
            continue
        other = parts[1]
        if (PACKAGE / other).exists() or (PACKAGE / f"{other}.py").exists():
            allowed = other == room or floor(other) < floor(room)
            if not allowed or (room, other) in FORBIDDEN:
                bad.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not bad, "\n".join(sorted(set(bad)))


def test_kernels_import_jax_and_numpy_only():
    standard = sys.stdlib_module_names
    used = {
        name.split(".")[0] for room, path, name in imports() if ROOT / "kernels" in path.parents
    }
    assert used - standard <= {"jax", "numpy", "jaxtyping"}


def test_torch_is_imported_by_parity_tests_alone():
    for _, path, name in imports():
        assert name.split(".")[0] != "torch", path


def test_the_package_list_is_the_tree():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    tree = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")
    } | {
        "bridgex_jax.kernels." + path.parent.name
        for path in (ROOT / "kernels").glob("*/__init__.py")
    }
    assert listed == tree
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_public_names_are_the_stub_s_and_all_resolve():
    import bridgex_jax

    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    listed = next(n for n in stub.body if isinstance(n, ast.Assign))
    assert sorted(ast.literal_eval(listed.value)) == sorted(bridgex_jax.__all__)
    for name in bridgex_jax.__all__:
        assert callable(getattr(bridgex_jax, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        bridgex_jax.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("from bridgex_jax import hsic", ("flax", "transformers", "torch", "babel", "pyarrow")),
        ("import bridgex_jax", ("jax", "flax", "transformers")),
        (
            "import sys; sys.argv = ['bridgex', '--help']\n"
            "from bridgex_jax.cli.main import main\ntry: main()\nexcept SystemExit: pass",
            ("jax", "flax", "transformers", "pyarrow", "matplotlib"),
        ),
    ],
    ids=["hsic", "package", "help"],
)
def test_what_is_not_needed_is_not_loaded(program, absent):
    check = f"{program}\nimport sys; print(sorted(set({absent!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
