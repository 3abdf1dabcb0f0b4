"""Where documents come from:
files, folders, the hub, the Python library; how they are split, filtered and cleaned."""
