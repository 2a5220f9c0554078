"""Time training steps of one worker over a link that is simulated by waiting."""
