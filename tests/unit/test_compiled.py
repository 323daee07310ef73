"""Where machine code is kept, and that it does not have to be kept anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from embeddings import compiled


def test_code_is_kept_in_a_folder_named_by_what_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEARLINE_CACHE_DIR", str(tmp_path))
    folder = compiled._make_folder()
    assert folder is not None
    assert folder.parent == tmp_path / "nearline"
    monkeypatch.setattr(compiled, "KERNELS", compiled.KERNELS[:1])
    assert compiled._make_folder() != folder


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
