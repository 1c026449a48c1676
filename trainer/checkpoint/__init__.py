"""Checkpoints: written whole, found again, uploaded, read back on other ranks, exported.

checkpoints.py is what the loop calls, and says what is in a checkpoint's directory. Below it:
    files         one checkpoint as files: name, marker, digests; no ranks, no network
    choice        which one a run goes on from
    upload        copies in a store; joint_upload: what the ranks agree on for them; neighbours: who shares a disk
    config        when they are written, which stay
    same_run      which settings must stay as they were
    saved         an engine's state by the names of its weights; redivide: dealt anew to other ranks
    export        a model directory from a checkpoint
"""
