"""What lies on the store: plan, units, index, ledger and description of one dataset."""
