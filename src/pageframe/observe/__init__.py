"""Ways to look at an arena: its map and how that is drawn, reports, and what notebooks show."""
