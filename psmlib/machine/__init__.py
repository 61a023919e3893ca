"""The machine: folders, files, memory, processes, CUDA graphs, random streams, provenance."""
