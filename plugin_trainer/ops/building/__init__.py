"""Builds the compiled library from the sources that this package carries, once per machine.

    sources     the C++ and CUDA files, and their digest
    toolchain   the compilers of this machine and what they are told
    cache       where finished libraries lie, and which of them are sound
    locking     one builder at a time, across processes
    compiling   torch's cpp_extension in a private folder
    prebuilt    the library that a wheel may carry

`library` (one folder up) asks them in turn. Nothing here runs at import, and a library that lies
ready is found without importing `torch.utils.cpp_extension` and without starting a process.
"""
