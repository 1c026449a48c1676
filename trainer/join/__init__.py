"""How the processes of a launch become one run: they find each other, and everything that must be equal is compared.

The parts, from below:
    launch     which launch a process belongs to, and its place there
    equality   what must be equal on all ranks, and a message that names what is not
    contents   the same for what lies behind paths that may differ by node
    board      messages in the store in which the processes meet
    guest      one process that comes to the meeting, and how it is refused
    visitors   processes of other launches that were turned away, as rank 0 tells of them
    meeting    the meeting itself: a seat for each rank, roll calls, the comparison
"""
