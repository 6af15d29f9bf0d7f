"""What developers ask of the compiler beside compiling: IR text run and compared, tuning, reports on the
machine.
"""
