"""From one source video to clips, or the reason why there are none."""
