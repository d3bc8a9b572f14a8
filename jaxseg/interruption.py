"""What ends a run before its last step: a signal, and the loss of another process."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import jax

__all__ = ["leave_others", "lost_process_is_said", "stop_requests"]


def leave_others(code: int) -> None:
    """Ends this process at once, where it is one of several and cannot go on, as if it were lost; else does nothing.

    Python's own end would wait five minutes in jax.distributed for the others, which wait in a collective for it.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether SIGTERM or Ctrl-C has come; a second Ctrl-C ends the process at once.

    A thread reads the wake-up descriptor, so the second Ctrl-C acts even while the main thread compiles. With
    several processes SIGTERM is left to jax.distributed, which tells them all of a notice to one.
    """
    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield lambda: False
        return
    several = jax.process_count() > 1
    stop = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        while received := os.read(reader, 1):
            number = received[0]
            if number not in (signal.SIGINT, signal.SIGTERM):
                continue
            if number == signal.SIGINT and stop.is_set():
                os._exit(130)
            stop.set()
            if several:
                os.kill(os.getpid(), signal.SIGTERM)
            print("stopping after this step, saving; Ctrl-C again stops at once", flush=True)

    taken = (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
    before = {s: signal.signal(s, lambda *_: None) for s in taken}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield stop.is_set
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)
        thread.join()
        os.close(reader)


@contextlib.contextmanager
def lost_process_is_said() -> Iterator[None]:
    """Says at once why a collective failed: leaving may wait for the lost process until it is given up."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() > 1:
            print(
                f"process {jax.process_index()}: another process is lost ({str(error).splitlines()[0]}); start all of "
                "them again, and the run goes on from its last checkpoint",
                file=sys.stderr,
                flush=True,
            )
        raise
