"""Read what users already have: find the files inside archives and register where they lie.

pack     directories of small files -> tar shards
scan     a tar file -> columns of members
index    tar files -> entries of a dataset
"""

from kvmeta.sources.indexer import index
from kvmeta.sources.packer import pack
from kvmeta.sources.report import Progress, Report
from kvmeta.sources.source import Members
from kvmeta.sources.tar import scan

__all__ = ["Members", "Progress", "Report", "index", "pack", "scan"]
