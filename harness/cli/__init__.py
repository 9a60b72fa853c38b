"""The commands that a person types, their flags, live view and errors."""
