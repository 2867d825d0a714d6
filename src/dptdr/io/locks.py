"""Lock files: one process at a time writes an output."""

import contextlib
import datetime
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from dptdr.errors import OutputError
from dptdr.io.atomic import writing


@contextlib.contextmanager
def locked(path: Path, name: str, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold a lock file next to an output; the system releases it when the process ends.

    Args:
        name: Name of the lock file.
        shared: Take a shared lock.
        wait: Wait for the holder.

    Raises:
        OutputError: If another process holds the lock; names the process.
    """
    lock = path.with_name(name)
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    with writing(lock):
        descriptor = _lock(path, lock, kind=kind)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            # Deleted by the last holder, and only while held.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path, lock: Path, *, kind: int) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, kind)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise OutputError(
                f"being written by {holder or 'another process'}; wait for it, or choose a "
                "different output",
                path=path,
            ) from None
        except OSError as error:
            # Some network file systems do not support locks; continue without one.
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                os.close(descriptor)
                raise
        with contextlib.suppress(FileNotFoundError):
            # The previous holder may have deleted the file between the two calls.
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
                line = f"process {os.getpid()} on {socket.gethostname()} since {now}\n"
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, line.encode(), 0)
                return descriptor
        os.close(descriptor)
