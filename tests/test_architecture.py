# SPDX-License-Identifier: Apache-2.0
"""The house: import order, sizes, names, what importing costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mambaout_jax

ROOT = Path(mambaout_jax.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# A file imports only from rooms above its own, or from its own.
ROOMS = (
    {"settings"},
    {"config", "imagenet_classes", "kernels", "metrics", "paths", "runtime"},
    {"config_file", "preprocessing"},
    {"layers", "published"},
    {"mixers"},
    {"backbone"},
    {"heads"},
    {"models"},
    {"weights", "analysis"},
    {"data"},
    {"tasks"},
    {"evaluation"},
    {"train"},
    {"benchmarks"},
    {"ablation", "aot", "export", "report"},
    {"cli"},
    {"__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
# Rooms that may see only these, whatever stands above them.
ONLY = {
    "kernels": {"kernels"},
    "settings": set(),
    "config": {"settings"},
    "imagenet_classes": set(),
    "paths": set(),
    "config_file": {"config", "paths", "settings"},
    "preprocessing": {"config", "imagenet_classes", "settings"},
    "runtime": {"runtime"},
    "metrics": {"metrics"},
    "data": {"config", "data", "imagenet_classes", "paths", "preprocessing", "settings"},
}

# Imported inside functions: optional or slow, and not everybody's.
LAZY = {"array_record", "cv2", "mamba_ssm", "matplotlib", "sklearn", "tensorboardX",
        "tensorflow_datasets", "timm", "torch", "transformers", "wandb"}  # fmt: skip

MAX_FILE, MAX_KERNEL_FILE = 400, 500
MAX_FUNCTION, MAX_LOOP = 60, 150


def room_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                yield node, f"{node.module}.{alias.name}"


def rooms_imported(tree):
    for _, name in imported_modules(tree):
        package, _, rest = name.partition(".")
        if package == "mambaout_jax":
            yield rest.split(".")[0]


def functions(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_keeps_to_the_house(path):
    text, tree, room = path.read_text(encoding="utf-8"), tree_of(path), room_of(path)
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(tree), "a file says what it is for"
    limit = MAX_KERNEL_FILE if room == "kernels" else MAX_FILE
    assert text.count("\n") <= limit

    if room != "__init__":
        for imported in rooms_imported(tree):
            if imported not in LEVEL:
                assert imported == "__version__"
                continue
            assert (
                imported == room
                or LEVEL[imported] < LEVEL[room]
                or (LEVEL[imported] == LEVEL[room] and imported == room)
            ), f"{room} imports {imported}, which stands beside or below it"
            assert imported in ONLY.get(room, {imported}), f"{room} imports {imported}"

    for function in functions(tree):
        length = function.end_lineno - function.lineno + 1
        allowed = MAX_LOOP if path.name == "loop.py" else MAX_FUNCTION
        assert length <= allowed, f"{function.name} has {length} lines"
        inner = {name.split(".")[0] for _, name in imported_modules(function)}
        if room not in ("cli", "__main__"):  # so that --help is quick
            assert inner <= LAZY, f"{function.name} imports {inner - LAZY}"

    assert "TYPE_CHECKING" not in text
    assert "NotImplementedError" not in text
    for word in ("TODO", "FIXME", "XXX"):
        assert not re.search(rf"\b{word}\b", text)


def test_no_junk_drawers():
    forbidden = {"utils", "util", "helpers", "common", "misc", "lib"}
    names = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    assert not names & forbidden


def test_data_names_nothing_of_jax():
    for path in (ROOT / "data").rglob("*.py"):
        names = {name.split(".")[0] for _, name in imported_modules(tree_of(path))}
        assert not names & {"jax", "flax", "optax", "torch", "tensorflow"}, path.name


def test_only_the_checkpoint_file_knows_orbax():
    users = [
        path.name
        for path in FILES
        if any(name.startswith("orbax") for _, name in imported_modules(tree_of(path)))
    ]
    assert users == ["checkpoint.py"]


def test_every_module_has_a_test_file():
    tests = Path(__file__).parent
    files = {path.stem for path in tests.rglob("test_*.py")}

    def is_tested(path):
        # By its name, or with all of its room: families by their contract, layers in one file.
        room = room_of(path)
        together = (f"{room}/test_contract.py", f"{room}/test_{room}.py")
        return f"test_{path.stem}" in files or any((tests / name).exists() for name in together)

    untested = [
        str(path.relative_to(ROOT))
        for path in FILES
        if path.stem not in ("__init__", "__main__", "task") and not is_tested(path)
    ]
    assert untested == [], "write tests/<room>/test_<module>.py for these"


def run_python(code):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return result.stdout


def test_importing_the_package_is_quick_and_light():
    code = (
        "import sys, time; began = time.perf_counter(); import mambaout_jax; "
        "print(time.perf_counter() - began); "
        "print(sorted(set(sys.modules) & {'jax', 'flax', 'torch', 'tensorflow', 'numpy'}))"
    )
    seconds, heavy = min(run_python(code).split("\n")[:2] for _ in range(3))
    assert float(seconds) < 0.3
    assert heavy == "[]"


def test_training_never_imports_torch_or_tensorflow():
    code = (
        "import sys; import mambaout_jax.train.loop, mambaout_jax.weights.convert, "
        "mambaout_jax.cli.main; print(sorted(set(sys.modules) & {'torch', 'tensorflow', 'clu'}))"
    )
    assert run_python(code).strip() == "[]"
