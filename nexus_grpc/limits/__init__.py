"""Rate limits, circuits and admission: what keeps a front from taking more than it should. Stands on ipc alone."""
