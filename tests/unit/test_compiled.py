"""Where machine code is kept, and that it does not have to be kept anywhere."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from embeddings import compiled


def test_code_is_kept_in_a_folder_named_by_what_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEARLINE_CACHE_DIR", str(tmp_path))
    folder = compiled._make_folder()
    assert folder is not None
    assert folder.parent == tmp_path / "nearline"
    monkeypatch.setattr(compiled, "KERNELS", compiled.KERNELS[:1])
    assert compiled._make_folder() != folder


def sources() -> set[Path]:
    return {path for pattern in compiled.KERNELS for path in compiled.ROOT.glob(pattern)}


def has_kernels(path: Path) -> bool:
    return any(line.startswith(("@jit", "@entry")) for line in path.read_text().splitlines())


def test_every_file_with_kernels_names_the_folder() -> None:
    house = ("contracts", "embeddings", "ranking", "viewers", "trends", "runtime", "updater", "batch", "homepage")
    with_kernels = {path for folder in house for path in (compiled.ROOT / folder).rglob("*.py") if has_kernels(path)}
    assert len(with_kernels) > 5
    assert with_kernels <= sources()


def test_every_file_that_kernels_take_constants_from_names_the_folder() -> None:
    """Compiled code holds their values: changed constants must not meet code that was compiled before."""
    imported = {
        compiled.ROOT / f"{module.replace('.', '/')}.py"
        for path in filter(has_kernels, sources())
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module
        for module in (node.module, *(f"{node.module}.{name.name}" for name in node.names))
    }
    assert {path for path in imported if path.is_file()} <= sources()


def test_compiling_needs_no_more_packages_than_the_run_script_installs_for_it() -> None:
    line = next(li for li in (compiled.ROOT / "run").read_text().splitlines() if li.startswith("KERNELS="))
    named = set(line.split('"')[1].split())
    code = (
        "import sys, sysconfig, viewers.precompile\n"
        "site = sysconfig.get_path('purelib')\n"
        "print(*{n.partition('.')[0] for n, m in sys.modules.items() if (getattr(m, '__file__', None) or '').startswith(site)})"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=compiled.ROOT, capture_output=True, text=True, check=True)
    part_of_scipy, used_if_there = {"_cyutility"}, {"yaml"}
    site_hooks = {name for name in found.stdout.split() if name.startswith("_") and name not in part_of_scipy}
    assert set(found.stdout.split()) - part_of_scipy - used_if_there - site_hooks == named


@compiled.jit
def doubled(n: int) -> int:
    return 2 * n


@numba.njit
def one_more(n: int) -> int:
    return doubled(n) + 1


def test_a_part_is_linked_into_who_calls_it_and_has_no_code_of_its_own() -> None:
    assert one_more(20) == 41
    (part,) = doubled.overloads.values()
    names = (part.fndesc.llvm_func_name, part.fndesc.llvm_cpython_wrapper_name, part.fndesc.llvm_cfunc_wrapper_name)
    (kernel,) = one_more.overloads.values()
    engine = kernel.library.codegen._engine
    assert engine.is_symbol_defined(kernel.fndesc.llvm_cpython_wrapper_name)
    assert not any(engine.get_function_address(name) for name in names if engine.is_symbol_defined(name))


def test_python_may_call_a_part_all_the_same() -> None:
    assert one_more(20) == 41  # compiled for this type before
    assert (doubled(21), doubled(2.5)) == (42, 5.0)


def test_where_no_folder_can_be_written_each_process_compiles_for_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    script = (
        "from embeddings.compiled import cache_folder, entry, is_compiled, one_at_a_time\n"
        "def double(n): return 2 * n\n"
        "with one_at_a_time(): print(cache_folder(), is_compiled(), entry(double)(21))\n"
    )
    environment = {**os.environ, "NEARLINE_CACHE_DIR": str(tmp_path / "file"), "PYTHONPATH": str(compiled.ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "None False 42\n", done.stderr


KEPT = """
import resource, sys
from embeddings.compiled import cache_folder, entry
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
@entry
def double(n): return 2 * n
print(double(21), sum(double._cache_hits.values()), len([*cache_folder().rglob("*.nb?")]))
"""


def test_damaged_code_and_a_full_disk_cost_the_time_to_compile_and_not_the_process(tmp_path: Path) -> None:
    (tmp_path / "kept.py").write_text(KEPT)
    environment = {**os.environ, "NEARLINE_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(compiled.ROOT)}

    def run(most_bytes: int = 10**8) -> str:
        command = [sys.executable, str(tmp_path / "kept.py"), str(most_bytes)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run(100) == "42 0 0\n"  # nothing can be written
    assert (run(), run()) == ("42 0 2\n", "42 1 2\n")
    for name, size in (("*.nbi", 0), ("*.nbc", 1_000)):
        (path,) = tmp_path.rglob(name)
        os.truncate(path, size)
        assert (run(), run()) == ("42 0 2\n", "42 1 2\n"), (name, size)
