"""The engine's inner loops: numba, nogil, plain loops over columns and addresses.

A kernel sees arrays of u8/u4/u1 and raw addresses, never a Python object; its caller keeps what the addresses
point at alive. The tables `runs` and `segments` describe a view (see `layout`). Integers are u8 throughout,
because numba turns i8 + u8 into a float.
"""
