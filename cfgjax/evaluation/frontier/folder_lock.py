"""The lock of an evaluation's folder."""

from cfgjax.base.lease import Lease, Lock, lock
from cfgjax.base.storage import Place
from cfgjax.distributed import collectives


def claim(folder: str | Place) -> Lock | Lease | None:
    """Locks the folder (created if missing) in the first process. Returns the lock, None in the others."""
    locks: list[Lock | Lease] = []
    busy = lambda holder: f"another evaluation is running in {folder}; wait for it, or use another --out"
    collectives.decided(lambda: locks.append(lock(folder, busy)), f"the claim of {folder}")
    return locks[0] if locks else None
