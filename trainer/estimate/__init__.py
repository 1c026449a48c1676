"""What a training will take, before it is started: memory.py bytes of a rank, speed.py clips a second.

Both rest on trace.py, the training step on shapes alone; stopwatch.py times real steps where it runs.
"""
