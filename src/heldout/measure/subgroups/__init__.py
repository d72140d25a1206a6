"""For whom does it fail, and why: metrics by site and by group, and what drives the errors."""
