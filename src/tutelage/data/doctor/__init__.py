"""What is odd about images before a network is trained on them: copies, classes, and pictures that show little."""
