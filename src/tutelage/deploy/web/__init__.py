"""A page that classifies photographs in a browser, with the model and all else that it needs beside it."""
