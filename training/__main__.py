"""`vae-train`, and what it says where the packages of its extra are missing."""

import os
import sys


def main() -> None:
    """Run the command line."""
    # Before torch is imported. OpenMP's threads wait for each other in spins, which makes training three
    # times slower on a machine that has other work; sleeping costs nothing measurable where it has none.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from training.cli import app
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        sys.exit(f"vae-train needs {package}; install it with: pip install 'vaeserve[train]'")
    try:
        app()
    except SystemExit as end:
        if "TORCHELASTIC_RUN_ID" not in os.environ or isinstance(end.code, str):
            raise
        # Once in some twenty runs torch aborts one process of several while the interpreter ends, with all
        # its work done; torchrun would then end the first one, which may still be publishing.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)


if __name__ == "__main__":
    main()
