"""What a replay or a process leaves: figures, pages, differences, and what CI makes of them."""
