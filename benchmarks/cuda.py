"""What a GPU gives: agreement with the CPU, steps per second, and many seeds side by side.

    python benchmarks/cuda.py                    the table, in under eight minutes
    python benchmarks/cuda.py grok               many seeds of modular_subtraction, as curves
    python benchmarks/cuda.py --device cpu --tiny     a dry run
    python benchmarks/cuda.py --help             all options

It needs PyTorch 2.11 or newer and a few pure packages, and no network. `--wheels FOLDER` takes the
packages that are missing from wheels in a folder; README.md beside this file says how to get them.
"""

import importlib.util
import os
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# Module -> package, of all that the trainings import, also through TransformerLens.
PACKAGES = {
    **{"torch": "torch", "numpy": "numpy", "pandas": "pandas", "safetensors": "safetensors"},
    **{"jaxtyping": "jaxtyping", "typer": "typer", "tqdm": "tqdm", "filelock": "filelock"},
    **{"rich": "rich", "einops": "einops", "fancy_einsum": "fancy_einsum"},
    **{"transformer_lens": "transformer_lens", "ruamel.yaml": "ruamel.yaml"},
    **{"pydantic": "pydantic", "pydantic_core": "pydantic_core"},
    **{"annotated_types": "annotated-types", "typing_inspection": "typing-inspection"},
}


def missing_packages() -> list[str]:
    """The packages that Python does not find."""
    return [package for module, package in PACKAGES.items() if not _is_there(module)]


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it
        return False


def unpack_wheels(folder: Path, target: Path) -> None:
    """Unpack all wheels in `folder`, and let Python find what it does not find elsewhere.

    Raises:
        SystemExit: the folder has no wheels.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise SystemExit(f"error: --wheels: found no wheels in {folder}")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    sys.path.append(str(target))


def find_modules() -> None:
    """Let Python find the project and the modules in gpu/, and not this one under the name `cuda`.

    NVIDIA's package of that name would be hidden.
    """
    others = [path for path in sys.path if Path(path).resolve() != HERE]
    sys.path[:] = [str(ROOT / "src"), str(HERE / "gpu"), *others]


def fix_workspaces() -> None:
    """Give cuBLAS workspaces of a fixed size, unless the environment says another.

    Otherwise PyTorch's deterministic mode warns at every matrix product, and the warnings take
    longer than a small product.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _take_wheels(target: Path) -> None:
    """Act on `--wheels FOLDER` or `--wheels=FOLDER`; the program itself ignores the option."""
    for place, argument in enumerate(sys.argv):
        name, _, value = argument.partition("=")
        folder = [value] if value else sys.argv[place + 1 : place + 2]
        if name == "--wheels" and folder:
            unpack_wheels(Path(folder[0]), target)


def main() -> None:
    """Check that all packages are there, and run the program."""
    find_modules()
    fix_workspaces()
    with tempfile.TemporaryDirectory() as target:
        _take_wheels(Path(target))
        if missing := missing_packages():
            hint = "benchmarks/README.md, On a GPU, says how to bring them as wheels"
            names = " ".join(missing)
            print(f"error: packages are missing: {names}; {hint}", file=sys.stderr)
            raise SystemExit(2)
        from toycircuits.core.fast_import import import_transformer_lens

        import_transformer_lens()
        from cuda_report import app

        app()


if __name__ == "__main__":
    main()
