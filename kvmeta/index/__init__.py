"""Read what users already have: find the files inside archives and register where they lie.

pack     directories of small files -> tar shards
scan     a tar file -> columns of members
index    tar files -> entries of a dataset
"""

from kvmeta.index.indexer import index
from kvmeta.index.packer import pack
from kvmeta.index.report import Progress, Report
from kvmeta.index.tar import Members, scan

__all__ = ["Members", "Progress", "Report", "index", "pack", "scan"]
