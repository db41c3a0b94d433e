"""What a flow map is: paths, velocities, maps, solvers, derivatives and the worlds where all are exact."""
