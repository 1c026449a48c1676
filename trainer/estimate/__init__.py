"""What a training will take, before it is started: memory.py bytes of a rank, prediction.py clips a second.

Both rest on trace.py, the training step on shapes alone. speed.py is arithmetic; stopwatch.py times real steps for it.
"""
