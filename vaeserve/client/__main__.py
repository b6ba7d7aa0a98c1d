"""`vae-client`, and what it says where the packages of its extra are missing."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from vaeserve.client.cli import app
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        sys.exit(f"vae-client needs {package}; install it with: pip install 'vaeserve[client]'")
    app()


if __name__ == "__main__":
    main()
