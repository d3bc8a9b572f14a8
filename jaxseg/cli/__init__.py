"""The `jaxseg` command."""

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["main", "mistakes"]


def _bench() -> Callable:
    from jaxseg.cli.bench import bench_command

    return bench_command


def _check_data() -> Callable:
    from jaxseg.cli.inspect import check_data_command

    return check_data_command


def _cluster() -> Callable:
    from jaxseg.cli.cluster import cluster_command

    return cluster_command


def _compile() -> Callable:
    from jaxseg.cli.compile import compile_command

    return compile_command


def _convert() -> Callable:
    from jaxseg.cli.convert import convert_command

    return convert_command


def _evaluate() -> Callable:
    from jaxseg.cli.evaluate import evaluate_command

    return evaluate_command


def _export() -> Callable:
    from jaxseg.cli.export import export_command

    return export_command


def _models() -> Callable:
    from jaxseg.cli.inspect import models_command

    return models_command


def _predict() -> Callable:
    from jaxseg.cli.predict import predict_command

    return predict_command


def _stylize() -> Callable:
    from jaxseg.cli.stylize import stylize_command

    return stylize_command


def _train() -> Callable:
    from jaxseg.cli.train import train_command

    return train_command


# each is imported when it is asked for
COMMANDS: dict[str, Callable[[], Callable]] = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "cluster": _cluster,
    "bench": _bench,
    "compile": _compile,
    "convert": _convert,
    "export": _export,
    "stylize": _stylize,
    "models": _models,
    "check-data": _check_data,
}


def mistakes() -> tuple[type[Exception], ...]:
    """The errors that say what was wrong in what was asked for."""
    from flax.errors import FlaxError

    return ValueError, OSError, ImportError, FloatingPointError, FlaxError


@contextlib.contextmanager
def one_message() -> Iterator[None]:
    """Data that are absent, and any other mistake in what was asked for, end the program with exit code 2.

    One of several processes leaves at once whatever went wrong, so that the others are not left to wait for it.
    """
    from jaxseg.interruption import leave_others

    try:
        yield
    except mistakes() as error:
        if os.environ.get("JAXSEG_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        leave_others(2)
        raise SystemExit(2) from None
    except Exception:
        import jax

        if jax.distributed.is_initialized():
            sys.excepthook(*sys.exc_info())
            leave_others(1)
        raise


def _said_once(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """As ever, but for what tensorstore prints of every other array where one could not be saved."""
    if str(error) != "Event loop is closed":
        sys.__excepthook__(kind, error, trace)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; a mistake in what was asked for ends with one message and exit code 2."""
    gc.set_threshold(100_000)  # tracing makes objects that stay: looking through them was 4 % of a start
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's chatter; its errors still show
    import logging

    import jax
    import tyro

    from jaxseg.data import default_data_dir

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax and Grain narrate; what fails is raised besides
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # jax2onnx leaves a few values without their type
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _said_once
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(default_data_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    words = sys.argv[1:] if arguments is None else arguments
    code: Any
    with one_message():
        try:
            if words and words[0] in COMMANDS:  # only what it needs is imported
                command: Any = COMMANDS[words[0]]()
                if arguments is None:
                    gc.freeze()  # what is imported stays, too
                code = tyro.cli(command, args=words[1:], prog=f"jaxseg {words[0]}", description=command.__doc__)
            else:
                run: Any = tyro.extras.subcommand_cli_from_dict
                every = {name: load() for name, load in COMMANDS.items()}
                code = run(every, args=words, prog="jaxseg", description=__doc__)
        except KeyboardInterrupt:
            code = 130
    sys.exit(code or 0)
