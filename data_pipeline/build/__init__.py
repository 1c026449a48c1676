"""Building a dataset: the plan is made, workers cut units, the driver gives them out. The only Ray."""
