"""A model cut in stages: its data, its schedule, its trainers."""
