"""Tools below the mathematics: paths, files, memory, processes, progress, CUDA graphs, random streams, provenance."""
