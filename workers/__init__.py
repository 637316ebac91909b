"""Background work: sweeps, arq jobs and the operator's command line."""
