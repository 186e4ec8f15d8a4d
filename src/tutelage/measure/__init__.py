"""Size, latency, quality, paired statistics, and the table made of them. Knows neither files nor recipes."""
