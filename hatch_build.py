"""Build hook: compiles `protos/` into `protos/gen/` so that generated code is never committed."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent


def compile_protos(root: Path) -> None:
    """Run protoc over every file of `root/protos/headwater`; raises CalledProcessError with protoc's words."""
    source, target = root / "protos", root / "protos" / "gen"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    files = sorted(str(path.relative_to(source)) for path in (source / "headwater").rglob("*.proto"))
    spec = importlib.util.find_spec("grpc_tools")
    if spec is None or spec.origin is None:
        raise RuntimeError("grpcio-tools is missing: pip install grpcio-tools")
    well_known = Path(spec.origin).parent / "_proto"
    scripts = Path(sys.executable).parent
    plugins = [
        f"--plugin={name}={found}"
        for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
        if (found := shutil.which(name) or shutil.which(name, path=str(scripts)))
    ]
    outputs = ["--python_out", "--grpc_python_out"]
    outputs += ["--mypy_out", "--mypy_grpc_out"] if len(plugins) == 2 else []
    subprocess.run(
        [
            sys.executable, "-m", "grpc_tools.protoc", f"-I{source}", f"-I{well_known}", *plugins,
            *(f"{option}={target}" for option in outputs), *files,
        ],
        check=True,
        cwd=source,
    )  # fmt: skip
    for folder in [path for path in (target / "headwater").rglob("*") if path.is_dir()] + [target / "headwater"]:
        (folder / "__init__.py").touch()
    (target / "headwater" / "py.typed").touch()


class CompileProtos(BuildHookInterface[Any]):
    """Called by hatchling for wheels and editable installs alike."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before files are collected."""
        del version, build_data
        compile_protos(Path(self.root))


if __name__ == "__main__":
    compile_protos(ROOT)
