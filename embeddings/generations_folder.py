"""The generations in a folder, and which of them is in force: `CURRENT`, changed under a lock and by renaming on local folders.

Object storage has no lock: there only one nightly job at a time may activate (the lake's lock sees to that). Every problem with what is
read or written is a `GenerationError`.
"""

from __future__ import annotations

import builtins
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pyarrow import fs

from contracts.current import Current, parse_current
from contracts.errors import GenerationError
from contracts.manifest import GENERATION_ID, Manifest
from contracts.shares import Share
from embeddings.files import MANIFEST, MAX_MANIFEST_BYTES, TEMPORARY, load_generation, load_manifest, verify_generation
from embeddings.roots import FOREIGN, flush_folder, open_root, write_file

CURRENT = "CURRENT"


class GenerationsFolder:
    """The generations in a folder, and which of them is in force."""

    def __init__(self, path: str | Path) -> None:
        self.root = open_root(path)

    def list(self) -> list[Manifest]:
        """Every completely published generation, oldest first. A folder without a readable manifest is none."""
        found = []
        for name in self._names():
            try:
                found.append(load_manifest(self.root, name))
            except GenerationError:  # half-published or of another format: load_generation says which
                continue
        return sorted(found, key=lambda manifest: (manifest.created_at_ms, manifest.generation_id))

    def created_at_s(self, generation_id: str) -> float:
        """When a generation was made, UTC seconds. Errors: `GenerationError`."""
        return load_manifest(self.root, generation_id).created_at_ms / 1000

    def read_current(self) -> Current | None:
        """The generation in force; None before the first activation. Errors: `GenerationError` if unreadable."""
        where = f"{self.root.name}/{CURRENT}"
        try:
            text = self.root.read(CURRENT, MAX_MANIFEST_BYTES)
        except FileNotFoundError:
            return None
        except FOREIGN as error:
            raise GenerationError(
                f"{where}: unreadable ({error}); nearline generations activate writes it again"
            ) from error
        return parse_current(text, where)

    def activate(self, generation_id: str | None, *, floor: int, ends_share: bool = False) -> Current:
        """Put a generation in force under the next activation: one above the last and above `floor` (the highest that the store knows).

        `generation_id` None: the one that is in force when the lock is ours, which may be another than when somebody last looked.
        Who sees a candidate goes on seeing it, unless that is what is put in force, or the share ends with this.

        1. Take the lock   2. load the generation: what does not load is refused   3. write CURRENT beside, flush, rename.
        A crash before 3 leaves the old one in force. Errors: `GenerationError`.
        """
        with self.locked():
            before = self.current_or_none()
            if generation_id is None:
                if before is None:
                    raise GenerationError(f"{self.root.name}: nothing is in force; nearline generations activate")
                generation_id = before.generation_id
            verify_generation(self.root, generation_id)
            previous, share = (None, None) if before is None else (before.generation_id, before.share)
            if before is not None and before.generation_id == generation_id:
                previous = before.previous
            if share is not None and (ends_share or share.generation_id == generation_id):
                share = None
            current = Current(generation_id, _next(before, floor), previous, share)
            self._write_current(current)
        return current

    def share(self, share: Share, *, floor: int) -> Current:
        """Have a share of the viewers see a candidate, under the next activation; everybody else what is in force. The steps are those of
        `activate`. Errors: `GenerationError`."""
        with self.locked():
            verify_generation(self.root, share.generation_id)
            before = self.read_current()
            if before is None or before.generation_id == share.generation_id:
                raise GenerationError(
                    f"{share.generation_id} cannot be seen by a share of the viewers: another generation must be in force"
                )
            load_generation(self.root, before.generation_id)  # else nobody could take this activation up
            current = replace(before, activation=_next(before, floor), share=share)
            self._write_current(current)
        return current

    def prune(self, keep: int) -> builtins.list[str]:
        """Remove all but the newest `keep` generations, those that rows are made by and the one in force before; returns what was removed.

        Only for whoever may publish (the nightly job, which runs alone): what a crash left half-written goes too.
        """
        with self.locked():
            current = self.read_current()
            published = [manifest.generation_id for manifest in self.list()]
            kept = set(published[max(0, len(published) - keep) :])
            if current is not None:
                kept |= {*current.generations, current.previous or current.generation_id}
            gone = [name for name in published if name not in kept]
            try:
                for name in gone:
                    # The manifest first: a removal that is interrupted leaves no generation behind.
                    self.root.system.delete_file(f"{self.root.path}/{name}/{MANIFEST}")
                    self.root.system.delete_dir(f"{self.root.path}/{name}")
                if self.root.local is not None:
                    for rest in self.root.local.glob(f"{TEMPORARY}*"):
                        shutil.rmtree(rest, ignore_errors=True)
            except FOREIGN as error:
                raise GenerationError(f"{self.root.name}: cannot remove old generations ({error})") from error
        return gone

    def _names(self) -> builtins.list[str]:
        try:
            found = self.root.system.get_file_info(fs.FileSelector(self.root.path, allow_not_found=True))
        except FOREIGN as error:
            raise GenerationError(f"{self.root.name}: cannot be listed ({error})") from error
        names = [str(info.base_name) for info in found if info.type == fs.FileType.Directory]
        return [name for name in names if GENERATION_ID.fullmatch(name)]

    def current_or_none(self) -> Current | None:
        """CURRENT, or None if there is none or if it is unreadable: `floor` then keeps activations growing."""
        try:
            return self.read_current()
        except GenerationError:
            return None

    def _write_current(self, current: Current) -> None:
        data = current.text().encode()
        try:
            local = self.root.local
            if local is None:
                with self.root.system.open_output_stream(f"{self.root.path}/{CURRENT}") as out:
                    out.write(data)
                return
            temporary = local / f"{TEMPORARY}{CURRENT}"
            write_file(temporary, data)
            temporary.replace(local / CURRENT)
            flush_folder(local)
        except FOREIGN as error:
            raise GenerationError(f"{self.root.name}/{CURRENT}: cannot be written ({error})") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One at a time, across threads and processes of this machine; nothing on object storage."""
        local = self.root.local
        if local is None:
            yield
            return
        try:
            local.mkdir(parents=True, exist_ok=True)
            lock = (local / ".lock").open("w")
        except OSError as error:
            raise GenerationError(f"{self.root.name}: not a folder that can be written ({error})") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _next(before: Current | None, floor: int) -> int:
    """The next activation: activations only grow."""
    return max(0 if before is None else before.activation, floor) + 1
