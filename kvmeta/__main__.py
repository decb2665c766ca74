"""`python -m kvmeta` is the command `kvmeta`."""

from kvmeta.cli.main import run

if __name__ == "__main__":
    run()
