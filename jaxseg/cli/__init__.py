"""The `jaxseg` command."""

import os
import sys
from typing import Any

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; a mistake in what was asked for ends with one message and exit code 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's chatter; its errors still show
    import logging

    import jax
    import tyro

    from jaxseg.cli.bench import bench_command
    from jaxseg.cli.cluster import cluster_command
    from jaxseg.cli.compile import compile_command
    from jaxseg.cli.convert import convert_command
    from jaxseg.cli.export import export_command
    from jaxseg.cli.inspect import check_data_command, models_command
    from jaxseg.cli.stylize import stylize_command
    from jaxseg.cli.train import train_command
    from jaxseg.cli.use import evaluate_command, predict_command
    from jaxseg.data import default_data_dir
    from jaxseg.fit import NonFiniteLoss

    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax and Grain narrate
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(default_data_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    commands: dict[str, Any] = {
        "train": train_command,
        "evaluate": evaluate_command,
        "predict": predict_command,
        "cluster": cluster_command,
        "bench": bench_command,
        "compile": compile_command,
        "convert": convert_command,
        "export": export_command,
        "stylize": stylize_command,
        "models": models_command,
        "check-data": check_data_command,
    }
    try:
        run: Any = tyro.extras.subcommand_cli_from_dict
        code = run(commands, args=arguments, prog="jaxseg", description=__doc__)
    except (ValueError, OSError, ImportError, NonFiniteLoss) as error:
        if os.environ.get("JAXSEG_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.exit(code or 0)
