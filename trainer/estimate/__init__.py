"""Estimates of a training before it is started: memory.py of a rank's bytes, prediction.py of clips a second.

Both use trace.py, which runs the training step on shapes alone. speed.py is arithmetic; stopwatch.py times real steps.
"""
