"""Files' bytes through their locations: which requests that takes, and who makes them.

plan     which stretches of which volumes a batch of locations needs (pure)
local    those stretches from this machine's file systems, cut into files and checked
"""
