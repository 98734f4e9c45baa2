"""The commands. Only this package prints, and only this package ends the process."""
