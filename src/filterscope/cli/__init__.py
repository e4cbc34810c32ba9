"""The command line: run the scripts, report errors in one line, resume runs, compare the jobs of a sweep."""
