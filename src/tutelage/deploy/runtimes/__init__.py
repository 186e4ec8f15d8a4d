"""The runtimes that run deployed files. Nothing here imports torch, and a runtime is imported when it opens a file."""
