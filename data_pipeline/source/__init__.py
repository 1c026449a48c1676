"""Reads manifests and fetches the video of each row as a local file."""
