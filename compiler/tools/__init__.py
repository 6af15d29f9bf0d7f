"""Developer tools besides compiling: running and comparing IR text, tuning, reports on the machine."""
