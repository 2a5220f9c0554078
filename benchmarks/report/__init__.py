"""Turn benchmark results into one HTML page and one Markdown page, from their JSON alone."""
