"""Pages and figures of results. Never imports torch."""
