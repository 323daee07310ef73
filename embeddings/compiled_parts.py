"""Functions that only kernels call, compiled for nothing else: not to be called by Python, and not before the kernel is whole.

numba makes of every function a library of its own: machine code, optimized with all that it calls, and wrappers for Python and C. Of a
function that kernels call nothing of that is ever run, and of a tree of them most is done again at every level. Here a part is typed,
lowered and linked into its callers; the kernel (`compiled.entry`) is optimized once, as a whole. That halves the time to compile, and the
machine code costs the same.

numba has a place for another pipeline (`pipeline_class`). What a library does when it is finalized is not part of its interface: with
another version of numba than `pyproject.toml` allows, look here first.
"""

from __future__ import annotations

from typing import Any

import numba
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import register_pass
from numba.core.registry import CPUDispatcher
from numba.core.typed_passes import NativeLowering

_ONLY_LINKED = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


class _Code(JITCodeLibrary):
    """What is linked into callers: never optimized as a whole, never made machine code."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _PartLowering(NativeLowering):
    """As numba's, into such a library; and without what makes it callable."""

    _name = "part_lowering"

    def run_pass(self, state: Any) -> bool:
        state.library = _Code(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags = state.flags.copy()
        state.flags.no_compile = True
        super().run_pass(state)
        known_as = object()  # callers look the function up by it
        state.targetctx.insert_user_function(known_as, state.cr.fndesc, [state.library])
        state.reload_init.extend(state.library._reload_init)
        state.cr = state.cr._replace(cfunc=known_as)
        return True


class _PartCompiler(Compiler):
    """numba's pipeline with the other lowering."""

    def define_pipelines(self) -> list[Any]:
        (passes,) = super().define_pipelines()
        passes.passes = [(_PartLowering if of is NativeLowering else of, why) for of, why in passes.passes]
        passes.finalize()
        return [passes]


class Part(CPUDispatcher):
    """A function that kernels call. Python may call it too (tests do): it is then compiled once more, by itself."""

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        super().__init__(
            function, targetoptions={"nopython": True, **options, **_ONLY_LINKED}, pipeline_class=_PartCompiler
        )
        self._options, self._alone = options, None

    def add_overload(self, compiled: Any) -> None:
        """Known to callers, not to Python: there is no code that it could run."""
        self.overloads[tuple(compiled.signature.args)] = compiled

    def _compile_for_args(self, *arguments: Any, **named: Any) -> Any:
        """What Python's call then goes on to."""
        if self._alone is None:
            self._alone = numba.njit(**self._options)(self.py_func)
        return self._alone
