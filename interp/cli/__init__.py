"""The commands. Only here anything is printed, and only here the process exits."""
