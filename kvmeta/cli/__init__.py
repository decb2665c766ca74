"""The command line. `kvmeta.cli.main` is the door; each other file is one noun's commands."""
