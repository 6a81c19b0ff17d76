"""See docs/live.md."""
