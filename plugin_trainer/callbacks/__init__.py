"""Core's own plugin: callbacks and schedules, registered through the same hooks as everyone's."""
