"""Checkpoints: written whole, uploaded, listed and repaired at a start, loaded on other ranks, exported.

The training loop calls checkpoints.py only, which also says what lies in a checkpoint's directory. Below it:
    writer        one save; staging: the memory that it goes through; background_save: from there to the disk
    files         one checkpoint as files: its name, marker and digests; no ranks, no network
    resume        from which checkpoint a run goes on
    upload        copies in a store; joint_upload: the ranks share the files out; shared_disks: which ranks share a disk
    same_run      which settings a run must keep; history: which have changed, and when
    fork          a run that begins from a checkpoint of another one; lookup: the checkpoint that a path names
    zero_files    an engine's state by the names of its weights; reshard: that state loaded on other ranks
    export        a model directory from a checkpoint
    exports       the model directories of a run, and where their weights come from
"""
