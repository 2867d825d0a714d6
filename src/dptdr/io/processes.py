"""Worker processes."""

import multiprocessing.process

from dptdr.errors import ConfigError

GUARD = "`if __name__ == '__main__':`"
DIED = f"killed, out of memory, or started by a script without {GUARD}"


def check_guarded() -> None:
    """Stop a worker process that runs the user's script again while it starts.

    Python imports the main script in each new process, which would repeat all its stages.

    Raises:
        ConfigError: If this is such a process.
    """
    if getattr(multiprocessing.process.current_process(), "_inheriting", False):
        raise ConfigError(
            f"the script was run again by one of its worker processes; put its code below {GUARD}"
        )
