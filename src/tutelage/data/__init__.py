"""Images, classes, splits, views and the loaders made of them."""
