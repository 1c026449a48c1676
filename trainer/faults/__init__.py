"""Events from outside that stop, hang or spoil a run, and the reaction of the run to each."""
