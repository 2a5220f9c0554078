"""Time single collectives: the process group on MPI, bare mpi4py beneath it, and gloo."""
