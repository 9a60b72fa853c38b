"""A study becomes cells: parts, plan, searches, estimates, and the sweep over them."""
